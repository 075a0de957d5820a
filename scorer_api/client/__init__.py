"""A client of the service, to ask it from Python: `Client`, and `AsyncClient` for asyncio.

It imports httpx and msgspec, and nothing of what the service is made of.
"""

from scorer_api.client.asynchronous import AsyncClient
from scorer_api.client.calls import Asked, RouteAsked, Tokens
from scorer_api.client.changes import (
    Change,
    Connected,
    Disconnected,
    PodAppeared,
    PodGone,
    Restarted,
    ServiceBack,
    ServiceLost,
    StreamAppeared,
    StreamGone,
    TrustChanged,
)
from scorer_api.client.errors import ClientError, NoAnswerError, ProblemError, StrangeAnswerError
from scorer_api.client.responses import (
    DoneAnswer,
    End,
    ExplainAnswer,
    ExplainedModel,
    ExplainedPod,
    ExplainedRank,
    Hint,
    HotAnswer,
    HotPrefix,
    PodAnswer,
    PodLoad,
    PodStatus,
    RouteAnswer,
    RoutedPod,
    ScoreAnswer,
    StreamStatus,
    ViewAnswer,
)
from scorer_api.client.retries import Retries
from scorer_api.client.synchronous import Client

__all__ = [
    "Asked",
    "AsyncClient",
    "Change",
    "Client",
    "ClientError",
    "Connected",
    "Disconnected",
    "DoneAnswer",
    "End",
    "ExplainAnswer",
    "ExplainedModel",
    "ExplainedPod",
    "ExplainedRank",
    "Hint",
    "HotAnswer",
    "HotPrefix",
    "NoAnswerError",
    "PodAnswer",
    "PodAppeared",
    "PodGone",
    "PodLoad",
    "PodStatus",
    "ProblemError",
    "Restarted",
    "Retries",
    "RouteAnswer",
    "RouteAsked",
    "RoutedPod",
    "ScoreAnswer",
    "ServiceBack",
    "ServiceLost",
    "StrangeAnswerError",
    "StreamAppeared",
    "StreamGone",
    "StreamStatus",
    "Tokens",
    "TrustChanged",
    "ViewAnswer",
]
