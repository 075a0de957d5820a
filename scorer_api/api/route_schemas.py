"""The types of requests for picks, and of their answers."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from scorer_api.api.schemas import ScoreRequest, Text, ViewAnswer
from scorer_api.routing.pick import PodReason
from scorer_api.routing.policies import Candidate, PickReason, PolicyName

OUTPUT_TOKENS_MAX = 10**7


class RouteRequest(ScoreRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which pod is this prompt to go to?"""

    session_id: Annotated[Text | None, Meta(description="Requests with the same one go to the same pod under the policy session.")] = None
    exclude: Annotated[list[str] | None, Meta(description="Never these pods; unknown names are ignored.")] = None
    output_tokens_expected: Annotated[int, Meta(ge=0, le=OUTPUT_TOKENS_MAX, description="Tokens of the answer, if known.")] | None = None
    policy: Annotated[PolicyName | None, Meta(description="How to pick; null for the service's own.")] = None
    include_speculative: Annotated[
        bool, Meta(description="Whether blocks of prompts that this scorer has just routed to a pod count as held, though not announced yet.")
    ] = True


class RouteRequestMsgpack(RouteRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The same in msgpack, where the tokens may also be packed."""

    token_ids: list[int] | bytes | None = None  # type: ignore[assignment]  # wider than in JSON, on purpose


class RouteAnswer(Struct, frozen=True):
    """The pod to send the prompt to, the others in the order in which to try them, and what was known of each."""

    model: str
    tokens: int
    id: Annotated[str, Meta(description="For /v1/route/done, once the request is over.")]
    pod: str
    rank: int
    fallbacks: list[str]
    policy: PolicyName
    picked_for: Annotated[PickReason | Literal["stale"], Meta(description="Why this pod is the first.")]
    reason: Annotated[dict[str, PodReason], Meta(description="What was known of each pod at the pick.")]
    http: Annotated[dict[str, str], Meta(description="The base URL of the API of the pod and of each fallback.")]
    view: ViewAnswer
    unknown_pods: list[str] | UnsetType = UNSET


class CandidatesAnswer(Struct, frozen=True):
    """What a pick would be made from."""

    model: str
    tokens: int
    fresh: Annotated[list[Candidate], Meta(description="Pods that may be picked.")]
    stale: Annotated[list[Candidate], Meta(description="Pods that may be picked if no other is left.")]
    reason: Annotated[dict[str, PodReason], Meta(description="What is known of every pod.")]
    http: Annotated[dict[str, str], Meta(description="The base URL of the API of each pod that may be picked.")]
    view: ViewAnswer
    unknown_pods: list[str] | UnsetType = UNSET


class DoneRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A routed request is over."""

    id: Annotated[str, Meta(max_length=64, description="What /v1/route answered.", examples=["0123456789abcdef"])]


class DoneAnswer(Struct, frozen=True):
    """`known`: whether the request still counted here."""

    id: str
    known: bool
