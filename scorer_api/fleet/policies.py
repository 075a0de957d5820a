"""All routers that a simulated fleet can be run with, by name."""

from collections.abc import Callable
from functools import partial

from scorer_api.fleet import baselines
from scorer_api.fleet.fleet import FleetRouter
from scorer_api.fleet.own_router import OwnRouter
from scorer_api.fleet.pod import PodModel
from scorer_api.routing.policies import POLICY_NAMES

MakeRouter = Callable[[int, PodModel, int], FleetRouter]
"""Of the number of pods, what they are like, and a seed."""

OWN: dict[str, MakeRouter] = {name: partial(OwnRouter, policy=name) for name in POLICY_NAMES}
"""Those of `/v1/route`."""

BASELINES: dict[str, MakeRouter] = {
    "random": baselines.RandomPod,
    "least-requests": baselines.LeastRequests,
    "least-waiting": baselines.LeastWaiting,
    "session-hash": baselines.SessionAffinity,
    "approximate": baselines.Approximate,
    "weighted-scorers": baselines.WeightedScorers,
    "affinity-filter": baselines.AffinityFilter,
    "overlap-cost": baselines.OverlapCost,
    "batch-product": baselines.BatchProduct,
}
ROUTERS: dict[str, MakeRouter] = {**OWN, **BASELINES}
