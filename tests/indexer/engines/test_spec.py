"""One engine, as the user names it."""

from typing import Any

import pytest

from indexer.engines.spec import EngineSpec, aliases, at_address, check_together, host_of, http_base, prefill_rate, with_shared_port
from indexer.errors import SettingError

HEAD = "pod=a,model=m,"


def refused(text: str) -> SettingError:
    with pytest.raises(SettingError) as raised:
        EngineSpec.from_text(text)
    assert (raised.value.key, raised.value.value) == ("--engine", text)
    assert "\n" not in str(raised.value)
    return raised.value


def test_a_short_spec() -> None:
    assert EngineSpec.from_text("pod=a,model=m,events=tcp://h:5557") == EngineSpec("a", "m", "tcp://h:5557")


def test_every_key() -> None:
    text = "pod=a,model=m,events=tcp://h:5557,replay=tcp://h:6557,ranks=4,topic=kv,counting=set,offload_block_size=64,http=https://h:8000/api"
    assert EngineSpec.from_text(text) == EngineSpec(
        "a", "m", "tcp://h:5557", replay="tcp://h:6557", ranks=4, topic="kv", counting="set", offload_block_size=64, http="https://h:8000/api"
    )


@pytest.mark.parametrize(
    ("text", "blocks"),
    [("drops_last_block=1", 1), ("drops_last_block=true", 1), ("drops_last_block=3", 3), ("drops_last_block=false", 0), ("topic=kv", 0)],
)
def test_how_many_of_the_last_matched_blocks_are_computed_again(text: str, blocks: int) -> None:
    assert EngineSpec.from_text(f"{HEAD}events=tcp://h:1,{text}").dropped_blocks == blocks


@pytest.mark.parametrize(("text", "names"), [("aliases=a", ("a",)), ("aliases=a | org/b|a", ("a", "org/b")), ("topic=kv", ())])
def test_the_aliases_of_a_model(text: str, names: tuple[str, ...]) -> None:
    assert aliases([EngineSpec.from_text(f"{HEAD}events=tcp://h:1,{text}")]) == names


def test_the_aliases_of_a_pod_are_those_of_all_its_specs() -> None:
    specs = [EngineSpec("p", "m", f"tcp://h:{rank + 1}", rank=rank, aliases=names) for rank, names in enumerate((("a", "m"), ("b", "a")))]
    assert aliases(specs) == ("a", "b")
    given = {"pod": "p", "model": "m", "events": "tcp://h:1", "aliases": ["a", "b"], "drops_last_block": True}
    assert EngineSpec.from_mapping(given, "spec") == EngineSpec("p", "m", "tcp://h:1", aliases=("a", "b"), drops_last_block=True)


def test_each_rank_has_a_port_for_snapshots() -> None:
    spec = EngineSpec.from_text(f"{HEAD}events=tcp://h:100,replay=tcp://h:200,snapshot=tcp://h:300,ranks=2")
    assert [spec.snapshot_at(rank) for rank in (0, 1)] == ["tcp://h:300", "tcp://h:301"]


def test_ranks_that_share_a_port() -> None:
    spec = EngineSpec.from_text(f"{HEAD}events=tcp://h:65535,replay=tcp://h:2,ranks=3,ranks_share_port=true")
    assert [spec.endpoints(rank) for rank in spec.stream_ranks] == [("tcp://h:65535", "tcp://h:2")] * 3
    assert with_shared_port(spec, 1) == spec
    assert with_shared_port(spec, 3).ranks == 4
    single = EngineSpec.from_text(f"{HEAD}events=ipc:///e")
    assert with_shared_port(single, 1) == EngineSpec("a", "m", "ipc:///e", ranks=2, ranks_share_port=True)
    one_rank = EngineSpec.from_text(f"{HEAD}events=tcp://h:1,rank=1")
    assert with_shared_port(one_rank, 2) == one_rank


def test_the_prefill_rate_is_the_first_that_a_pods_specs_give() -> None:
    given, other = (
        EngineSpec.from_text(f"{HEAD}events=tcp://h:{port},rank={port},{rate}") for port, rate in ((1, "topic=kv"), (2, "prefill_tokens_per_s=8e3"))
    )
    assert prefill_rate([given, other]) == 8_000.0
    assert prefill_rate([given]) is None


def test_spaces_around_keys_and_values_do_not_matter() -> None:
    assert EngineSpec.from_text(" pod = a , model=m,\n events=tcp://h:1 ") == EngineSpec("a", "m", "tcp://h:1")


def test_names_may_hold_slashes_colons_and_ats() -> None:
    spec = EngineSpec.from_text("pod=ns/pod:8000@eu,model=org/model:v1@main=x,events=tcp://h:1,topic=kv@ns/pod@org/model")
    assert (spec.pod, spec.model, spec.topic) == ("ns/pod:8000@eu", "org/model:v1@main=x", "kv@ns/pod@org/model")


@pytest.mark.parametrize("events", ["tcp://10.0.0.1:5557", "tcp://pod-0.svc.local:5557", "tcp://[::1]:5557", "tcp://[fe80::1%eth0]:5557"])
def test_endpoints_that_are_right(events: str) -> None:
    assert EngineSpec.from_text(f"{HEAD}events={events}").endpoints(0) == (events, None)


def test_ipc_endpoints_are_right_for_one_rank() -> None:
    assert EngineSpec.from_text(f"{HEAD}events=ipc:///tmp/a.ipc").endpoints(0) == ("ipc:///tmp/a.ipc", None)


@pytest.mark.parametrize(
    "events",
    ["h:5557", "tcp://h", "tcp://h:", "tcp://:5557", "tcp://*:5557", "http://h:5557", "tcp://h:port", "tcp://h:123456", "tcp://a b:1", "ipc://"],
)
def test_endpoints_that_are_wrong(events: str) -> None:
    error = refused(f"{HEAD}events={events}")
    assert "events" in error.allowed
    assert "tcp://host:port" in error.allowed
    assert repr(events) in error.allowed


@pytest.mark.parametrize(
    "more", ["events=tcp://h:0", "events=tcp://h:65536", "events=tcp://h:65535,ranks=2", "events=tcp://h:1,replay=tcp://h:65534,ranks=3"]
)
def test_every_rank_needs_a_port(more: str) -> None:
    assert "port" in refused(HEAD + more).allowed


@pytest.mark.parametrize("more", ["events=tcp://h:65535", "events=tcp://h:65534,ranks=2", "events=tcp://h:65535,rank=9"])
def test_the_last_port_may_be_used(more: str) -> None:
    spec = EngineSpec.from_text(HEAD + more)
    assert spec.endpoints(spec.stream_ranks[-1])[0] == "tcp://h:65535"


def test_rank_r_is_at_both_ports_plus_r() -> None:
    spec = EngineSpec.from_text(f"{HEAD}events=tcp://h:5557,replay=tcp://[::1]:6557,ranks=3")
    assert list(spec.stream_ranks) == [0, 1, 2]
    assert [spec.endpoints(rank) for rank in spec.stream_ranks] == [
        ("tcp://h:5557", "tcp://[::1]:6557"),
        ("tcp://h:5558", "tcp://[::1]:6558"),
        ("tcp://h:5559", "tcp://[::1]:6559"),
    ]


def test_one_stream_of_a_rank_is_at_the_ports_as_given() -> None:
    spec = EngineSpec.from_text(f"{HEAD}events=tcp://h:5557,replay=tcp://h:6557,rank=3")
    assert list(spec.stream_ranks) == [3]
    assert spec.endpoints(3) == ("tcp://h:5557", "tcp://h:6557")


def test_without_ranks_it_is_rank_0() -> None:
    assert list(EngineSpec.from_text(f"{HEAD}events=tcp://h:1").stream_ranks) == [0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["key=value"]),
        ("a", ["'a'", "key=value"]),
        ("pod=a,model=m,events=tcp://h:1,", ["key=value"]),
        ("model=m,events=tcp://h:1", ["pod is required"]),
        ("pod=a,events=tcp://h:1", ["model is required"]),
        ("pod=a,model=m", ["events is required"]),
        ("pod=,model=m,events=tcp://h:1", ["pod is required"]),
        ("pod=a,pod=b,model=m,events=tcp://h:1", ["pod is given twice"]),
        ("pod=a,model=m,event=tcp://h:1", ["'event'", "events", "replay", "counting"]),
        ("Pod=a,model=m,events=tcp://h:1", ["'Pod'"]),
        ("pod=a,model=m,events=tcp://h:1,ranks=0", ["ranks", ">= 1"]),
        ("pod=a,model=m,events=tcp://h:1,ranks=1025", ["ranks", "1024"]),
        ("pod=a,model=m,events=tcp://h:1,ranks=two", ["ranks", "int"]),
        ("pod=a,model=m,events=tcp://h:1,rank=-1", ["rank", ">= 0"]),
        ("pod=a,model=m,events=tcp://h:1,rank=65536", ["rank", "65535"]),
        ("pod=a,model=m,events=tcp://h:1,rank=1,ranks=2", ["rank", "ranks", "not both"]),
        ("pod=a,model=m,events=tcp://h:1,replay=tcp://h:1", ["replay", "events"]),
        ("pod=a,model=m,events=tcp://h:1,replay=nowhere", ["replay", "tcp://host:port"]),
        ("pod=a,model=m,events=ipc:///a,ranks=2", ["events", "ranks > 1"]),
        ("pod=a,model=m,events=tcp://h:1,replay=ipc:///a,ranks=2", ["replay", "ranks > 1"]),
        ("pod=a,model=m,events=tcp://h:1,counting=sets", ["counting", "copies"]),
        ("pod=a,model=m,events=tcp://h:1,offload_block_size=0", ["offload_block_size", ">= 1"]),
        ("pod=a,model=m,events=tcp://h:1,ranks_share_port=true", ["ranks_share_port", "ranks=N"]),
        ("pod=a,model=m,events=tcp://h:1,snapshot=replay", ["snapshot", "replay"]),
        ("pod=a,model=m,events=tcp://h:1,replay=tcp://h:2,snapshot=5559", ["snapshot", "replay or tcp://host:port", "5559"]),
        ("pod=a,model=m,events=tcp://h:1,replay=tcp://h:2,snapshot=tcp://other:3", ["snapshot", "host of replay"]),
        ("pod=a,model=m,events=tcp://h:1,replay=tcp://h:2,snapshot=tcp://h:2", ["tcp://h:2", "for snapshots and for something else"]),
        ("pod=a,model=m,events=tcp://h:10,replay=tcp://h:20,snapshot=tcp://h:65535,ranks=2", ["snapshot", "65535"]),
        ("pod=a,model=m,events=tcp://h:1,drops_last_block=65", ["drops_last_block", "<= 64"]),
        ("pod=a,model=m,events=tcp://h:1,drops_last_block=few", ["drops_last_block", "bool"]),
        ("pod=a,model=m,events=tcp://h:1,prefill_tokens_per_s=0", ["prefill_tokens_per_s", ">= 1"]),
        ("pod=a,model=m,events=tcp://h:1,prefill_tokens_per_s=nan", ["prefill_tokens_per_s"]),
        (f"pod=a,model=m,events=tcp://h:1,aliases={'a' * 513}", ["aliases", "512"]),
        (f"pod={'a' * 513},model=m,events=tcp://h:1", ["pod", "512"]),
        (f"pod=a,model={'m' * 513},events=tcp://h:1", ["model", "512"]),
    ],
)
def test_a_wrong_spec_says_what_is_wrong_and_what_would_be_right(text: str, words: list[str]) -> None:
    error = refused(text)
    assert [word for word in words if word not in error.allowed] == []


def test_the_longest_names_are_right() -> None:
    assert len(EngineSpec.from_text(f"pod={'a' * 512},model={'m' * 512},events=tcp://h:1").pod) == 512


# As JSON


def test_a_mapping_is_taken_by_its_types() -> None:
    given = {"pod": "a", "model": "m", "events": "tcp://h:1", "ranks": 2, "replay": None}
    assert EngineSpec.from_mapping(given, "spec") == EngineSpec("a", "m", "tcp://h:1", ranks=2)


@pytest.mark.parametrize(
    "more", [{"ranks": "2"}, {"ranks": 2.5}, {"ranks": True}, {"pod": 1}, {"events": ["tcp://h:1"]}, {"topic": None}, {"counting": 1}]
)
def test_a_mapping_with_other_types_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(SettingError) as raised:
        EngineSpec.from_mapping({"pod": "a", "model": "m", "events": "tcp://h:1", **more}, "spec")
    assert next(iter(more)) in raised.value.allowed


# Together


def specs(*texts: str) -> list[EngineSpec]:
    return [EngineSpec.from_text(text) for text in texts]


def test_specs_of_several_pods_and_ranks_go_together() -> None:
    check_together(specs("pod=a,model=m,events=tcp://h:1,rank=0", "pod=a,model=m,events=tcp://h:2,rank=1", "pod=b,model=n,events=tcp://h:3"), "x")


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ("pod=a,model=m,events=tcp://h:1", "pod=a,model=m,events=tcp://h:2", "rank 0"),
        ("pod=a,model=m,events=tcp://h:1,ranks=3", "pod=a,model=m,events=tcp://h:9,rank=2", "rank 2"),
        ("pod=a,model=m,events=tcp://h:1", "pod=a,model=n,events=tcp://h:2,rank=1", "'n'"),
    ],
)
def test_one_pod_and_rank_twice_or_one_pod_with_two_models_do_not(first: str, second: str, word: str) -> None:
    with pytest.raises(SettingError) as raised:
        check_together(specs(first, second), "--engine")
    assert (raised.value.key, raised.value.value) == ("--engine", "a")
    assert word in raised.value.allowed


@pytest.mark.parametrize(
    ("http", "host"),
    [
        ("http://h", "h"),
        ("http://h/", "h"),
        ("https://h:8443", "h"),
        ("http://10.0.0.7:8000/vllm/v1", "10.0.0.7"),
        ("http://[::1]:8000", "::1"),
        ("https://[fd00::1]/x", "fd00::1"),
        ("http://h:65535", "h"),
    ],
)
def test_api_bases_that_are_right(http: str, host: str) -> None:
    spec = EngineSpec.from_text(f"{HEAD}events=tcp://h:1,http={http}")
    assert (spec.http, http_base([spec]), host_of(http)) == (http, http, host)


@pytest.mark.parametrize(
    "http",
    [
        *("h", "h:8000", "tcp://h:8000", "http://", "http://:8000", "http://h:0", "http://h:65536", "http://h:x", "http://*:1", "HTTP://h"),
        *("http://h/?a", "http://h/#a", "http://h?a", "http://u:secret@h:1", "http://u@h", "http://h/a b", "ftp://h", "http://a:1:2"),
    ],
)
def test_api_bases_that_are_wrong(http: str) -> None:
    error = refused(f"{HEAD}events=tcp://h:1,http={http}")
    assert "http should be http://host[:port][/path] or https://" in error.allowed
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("pod", "base"),
    [
        ("10.0.0.7:8000", "http://10.0.0.7:8000"),
        ("pod-0.svc:8000", "http://pod-0.svc:8000"),
        ("[fd00::7]:8000", "http://[fd00::7]:8000"),
        ("fd00::7", "http://[fd00::7]"),
        ("dead:beef:8000", "http://dead:beef:8000"),
    ],
)
def test_without_one_the_pods_name_is_its_api_base(pod: str, base: str) -> None:
    assert http_base([EngineSpec.from_text(f"pod={pod},model=m,events=tcp://h:1")]) == base


def test_one_of_a_pods_specs_says_its_api_base_and_no_two_say_different_ones() -> None:
    first, second = (
        EngineSpec.from_text(f"pod=a,model=m,events=tcp://h:{5557 + rank},rank={rank}{more}") for rank, more in ((0, ""), (1, ",http=http://h"))
    )
    check_together([first, second], "--engine")
    assert http_base([first, second]) == "http://h"
    third = EngineSpec.from_text("pod=a,model=m,events=tcp://h:1,rank=2,http=http://other")
    with pytest.raises(SettingError, match="values of http, 'http://h' and 'http://other'; a pod has one API"):
        check_together([second, third], "--engine")


def test_an_address_takes_the_place_of_the_host_alone() -> None:
    assert at_address("https://h:8000/h", "10.0.0.1") == "https://10.0.0.1:8000/h"
    assert at_address("http://h", "::1") == "http://[::1]"
    assert at_address("tcp://[::1]:5557", "10.0.0.1") == "tcp://10.0.0.1:5557"
