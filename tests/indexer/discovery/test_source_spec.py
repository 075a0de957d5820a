"""What `--discover` says."""

from typing import Any

import pytest

from indexer.discovery.source_spec import DiscoverSpec, EngineOptions
from indexer.errors import SettingError


@pytest.mark.parametrize(
    ("text", "place", "options"),
    [
        ("pods:models?selector=app=vllm", ("pods", "models", "", "app=vllm"), {}),
        ("pods:models?selector=app in (a,b),!canary", ("pods", "models", "", "app in (a,b),!canary"), {}),
        ("inferencepool:models/chat.v1", ("inferencepool", "models", "chat.v1", ""), {}),
        ("service:models/vllm?model=my/model&port=8001", ("service", "models", "vllm", ""), {"model": "my/model", "http_port": 8001}),
        ("dns:vllm.models.svc.?port=8000", ("dns", "", "vllm.models.svc.", ""), {"http_port": 8000}),
        ("dns:_http._tcp.vllm.models.svc", ("dns", "", "_http._tcp.vllm.models.svc", ""), {}),
        ("service:models/vllm?replay-port=none&ranks=4", ("service", "models", "vllm", ""), {"replay_port": "none", "ranks": 4}),
    ],
)
def test_each_form_is_understood(text: str, place: tuple[str, ...], options: dict[str, Any]) -> None:
    spec = DiscoverSpec.from_text(text)
    assert spec.text == text
    assert (spec.kind, spec.namespace, spec.name, spec.selector) == place
    assert spec.options == EngineOptions(**options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models", "should be inferencepool:NAMESPACE/NAME"),
        ("pod:models?selector=a", "should be inferencepool:NAMESPACE/NAME"),
        ("pods:models", "needs ?selector="),
        ("pods:models/vllm?selector=a", "has no proper name behind pods:"),
        ("pods:../..?selector=a", "has no proper name behind pods:"),
        ("service:models", "has no proper name behind service:"),
        ("service:models/vllm?selector=a", "'selector=a' is not key=value; keys are port, events-port"),
        ("inferencepool:Models/chat", "has no proper name behind inferencepool:"),
        ("pods:models?selector=a&port=0", "port: Expected `int` >= 1"),
        ("pods:models?selector=a&replay-port=no", "replay-port: "),
        ("pods:models?selector=a&port=1&port=2", "port is given twice"),
        ("dns:vllm.models", "needs ?port="),
        ("dns:a b?port=1", "has no proper name behind dns:"),
        ("pods:models?selector=a&counting=all", "counting: "),
        (f"pods:models?selector={'a' * 3_000}", "at most 2048 characters"),
    ],
)
def test_a_mistake_is_named(text: str, said: str) -> None:
    with pytest.raises(SettingError) as failure:
        DiscoverSpec.from_text(text)
    assert said in failure.value.allowed


def test_options_of_a_pod_count_above_those_of_the_source() -> None:
    own, general = EngineOptions(events_port=1, model="a"), EngineOptions(events_port=2, ranks=3)
    assert own.over(general) == EngineOptions(events_port=1, model="a", ranks=3)
