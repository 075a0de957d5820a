"""Messages that the service writes, as protoc's classes read them."""

from typing import Any

import msgspec
import pytest
from google.protobuf.json_format import MessageToDict

from scorer_api.api.route_schemas import DoneAnswer, RouteAnswer
from scorer_api.api.schemas import ExplainAnswer, PodAnswer, ScoreAnswer, ViewAnswer
from scorer_api.client import changes
from scorer_api.explain.hints import Hint, HintCode
from scorer_api.explain.reasons import About, End, PodExplained, PodLoad, RankExplained, Reason
from scorer_api.routing.pick import PodReason
from scorer_api.rpc.schema import SCHEMA
from scorer_api.rpc.writing import encode
from tests.scorer_stub import messages

VIEW = ViewAnswer("redis", 0.25)
TYPES = (
    *(ScoreAnswer, PodAnswer, ViewAnswer, RouteAnswer, PodReason, DoneAnswer, ExplainAnswer, PodExplained, PodLoad, RankExplained, End, About, Hint),
    *(changes.PodAppeared, changes.PodGone, changes.StreamAppeared, changes.StreamGone, changes.TrustChanged),
    *(changes.Connected, changes.Disconnected, changes.Restarted),
)


def read(name: str, value: Any) -> Any:
    return getattr(messages, name).FromString(encode(name, value))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_a_message_has_the_fields_of_its_type(kind: type[msgspec.Struct]) -> None:
    assert [field.name for field in SCHEMA.messages[kind.__name__]] == list(kind.__struct_fields__)


def test_a_score() -> None:
    pod = PodAnswer("pöd", 0.75, 70_000, 4_375, 2**31, 16, {"gpu": 4_000, "cpu": 375}, 1, {"0": 0, "1": 4_375}, "live", 0)
    empty = PodAnswer("empty", 0.0, 0, 0, 0, None, {}, 0, {"0": 0}, "stale")
    found = read("ScoreAnswer", ScoreAnswer("m", 2**33, "pöd", [pod, empty], VIEW, ["ghost"]))
    assert (found.model, found.tokens, found.best, list(found.unknown_pods)) == ("m", 2**33, "pöd", ["ghost"])
    assert (found.view.source, found.view.age_s) == ("redis", 0.25)
    first, second = found.pods
    assert (first.pod, first.score, first.matched_tokens, first.matched_blocks, first.usable_blocks) == ("pöd", 0.75, 70_000, 4_375, 2**31)
    assert (first.block_size, dict(first.tiers), first.rank, dict(first.ranks)) == (16, {"gpu": 4_000, "cpu": 375}, 1, {"0": 0, "1": 4_375})
    assert (first.trust, first.speculative_blocks, first.HasField("speculative_blocks")) == ("live", 0, True)
    assert (second.HasField("block_size"), second.HasField("speculative_blocks"), dict(second.ranks)) == (False, False, {"0": 0})


def test_an_explanation() -> None:
    end = End(Reason.REMOVED, 0, "gone", 7)
    rank = RankExplained(3, "live", 16, 0, 9, [("gpu", 118), ("cpu", 2)], end)
    pod = PodExplained("p", 0.0, 0, 0, 9, 16, "live", True, 3, "gone", PodLoad(0, 2, None, 1.5), [rank])
    hint = Hint(HintCode.NO_EVENTS, "look")
    found = read("ExplainAnswer", ExplainAnswer("m", 5, "token_ids", [pod], About(1, [16, 300], ["a"], None), [hint], VIEW))
    assert MessageToDict(found, preserving_proto_field_name=True) == {
        "model": "m",
        "tokens": "5",
        "source": "token_ids",
        "pods": [
            {
                **{"pod": "p", "usable_blocks": 9, "block_size": 16, "trust": "live", "ready": True, "rank": 3, "why": "gone"},
                "load": {"waiting": 2, "age_s": 1.5},
                "ranks": [
                    {
                        **{"rank": 3, "trust": "live", "block_size": 16, "usable_blocks": 9},
                        "runs": [{"tier": "gpu", "blocks": 118}, {"tier": "cpu", "blocks": 2}],
                        "end": {"reason": "removed", "block": 0, "detail": "gone", "sequence": "7"},
                    }
                ],
            }
        ],
        "about": {"pods": 1, "block_sizes": [16, 300], "adapters": ["a"]},
        "hints": [{"code": "no_events", "detail": "look"}],
        "view": {"source": "redis", "age_s": 0.25},
    }


def test_a_pick() -> None:
    reason = PodReason(1, 64, 0, 3, 0, None, 0, 0.5, None, 0.125, "live", "cost")
    answer = RouteAnswer("m", 67, "id", "p", 1, ["q"], "cost", "longest_match", {"p": reason}, {"p": "http://p", "q": ""}, VIEW)
    found = read("RouteAnswer", answer)
    assert (found.id, found.pod, list(found.fallbacks), dict(found.http)) == ("id", "p", ["q"], {"p": "http://p", "q": ""})
    told = found.reason["p"]
    assert (told.matched_tokens, told.waiting, told.kv_usage, told.cost_s, told.why) == (64, 0, 0.5, 0.125, "cost")
    assert (told.HasField("running"), told.HasField("waiting"), told.HasField("load_age_s")) == (False, True, False)
