"""The names of keys in Redis."""

from collections import Counter

import pytest
from redis.crc import key_slot
from xxhash import xxh3_128_hexdigest

from indexer.core.names import StreamKey
from indexer.errors import SettingError
from indexer.store.keyspace import (
    PARTS,
    SHARDS_MAX,
    Keyspace,
    Shard,
    check_namespace,
    incarnation_beside,
    shard_of,
    shards_of,
    stream_id,
    stream_of,
    text_of,
)

STREAM = StreamKey("org/model", "pod:1", 3)


def test_all_keys_of_a_model_lie_in_one_slot() -> None:
    keys = Keyspace("kvi").model("org/model")
    tag = keys.log[keys.log.index("{") : keys.log.index("}") + 1]
    names = [keys.log, keys.streams, keys.incarnation, keys.lease(STREAM), keys.state(STREAM), keys.load("pod"), *keys.parts(STREAM, 1)]
    assert all(name.startswith(f"kvi:2:{tag}:") for name in names)
    assert len(set(names)) == len(names) == 6 + len(PARTS)
    assert Keyspace("kvi").model("org/other").log != keys.log


def test_all_keys_of_the_directory_lie_in_one_slot() -> None:
    directory = Keyspace("ns").directory
    assert {getattr(directory, name) for name in directory.__struct_fields__} == {
        f"ns:2:{{directory}}:{name}" for name in directory.__struct_fields__
    }


def test_the_incarnation_beside_a_key() -> None:
    keyspace = Keyspace("kvi")
    keys = keyspace.model("m")
    assert incarnation_beside(keys.state(STREAM)) == keys.incarnation
    assert incarnation_beside(keyspace.directory.pods) == keyspace.directory.incarnation


def test_streams_are_read_back_from_their_names() -> None:
    assert stream_id(STREAM) == "3:pod:1"
    assert stream_of("org/model", b"3:pod:1") == STREAM
    with pytest.raises(ValueError, match="invalid literal"):
        stream_of("m", "no rank")
    assert text_of(b"\xff") == "\ufffd"


@pytest.mark.parametrize("namespace", ["", "a" * 65, "a b", "{a}", "a*"])
def test_what_is_no_namespace(namespace: str) -> None:
    with pytest.raises(SettingError, match="should be 1 to 64 letters"):
        check_namespace(namespace, "--namespace")
    check_namespace("kvi.prod-1:a_b", "--namespace")


# Shards


def slot_of(key: str) -> int:
    return int(key_slot(key.encode()))


def test_one_shard_has_the_names_that_models_always_had() -> None:
    digest = xxh3_128_hexdigest(b"org/model")
    keys = Keyspace("kvi", shards=1).of(STREAM)
    assert keys.log == f"kvi:2:{{{digest}}}:log"
    assert keys.state(STREAM) == f"kvi:2:{{{digest}}}:state:3:pod:1"


def test_all_keys_of_a_shard_lie_in_one_slot_and_shards_share_none() -> None:
    keyspace = Keyspace("kvi", shards=3)
    seen = set()
    for shard in keyspace.shards_of("org/model"):
        keys = keyspace.model(shard.model, shard.number)
        names = [keys.log, keys.streams, keys.incarnation, keys.lease(STREAM), keys.state(STREAM), keys.load("pod"), *keys.parts(STREAM, 1)]
        assert len({slot_of(name) for name in names}) == 1
        assert incarnation_beside(keys.log) == keys.incarnation
        seen.update(names)
    assert len(seen) == 3 * (6 + len(PARTS))
    others = {Keyspace("kvi", shards=number).model("org/model").log for number in (1, 2, 4)}
    assert len(others) == 3
    assert not others & seen


@pytest.mark.parametrize("shards", [2, 3, 16, SHARDS_MAX])
def test_the_shards_of_a_model_lie_evenly_among_the_slots(shards: int) -> None:
    """So contiguous ranges of slots, as nodes of a Cluster have, get equal shares of them."""
    keyspace = Keyspace("kvi", shards)
    for model in ("a", "org/model"):
        first = slot_of(xxh3_128_hexdigest(model.encode()))
        for shard in keyspace.shards_of(model):
            slot = slot_of(keyspace.model(model, shard.number).log)
            assert (slot - first - shard.number * 16_384 // shards) % 16_384 < 64


def test_the_ranks_of_a_pod_and_its_load_lie_in_one_shard() -> None:
    keyspace = Keyspace("kvi", shards=7)
    for number in range(50):
        pod = f"pod-{number}"
        shards = {keyspace.shard(StreamKey("m", pod, rank)) for rank in range(8)}
        assert shards == {Shard("m", shard_of(pod, 7))}
        assert keyspace.of_pod("m", pod) == keyspace.of(StreamKey("m", pod, 5))


def test_pods_spread_over_shards_and_stay_where_they_are() -> None:
    """What is stable was written down once: another version has to find it there."""
    assert [shard_of(pod, 3) for pod in ("pod-0", "pod-1", "10.0.0.7:8000", "")] == [2, 0, 1, 1]
    counts = Counter(shard_of(f"pod-{number}", 7) for number in range(7_000))
    # The standard deviation of a share is 29.
    assert sorted(counts) == list(range(7))
    assert all(850 < count < 1_150 for count in counts.values())


@pytest.mark.parametrize(
    ("text", "shards"), [(None, 1), (b"1", 1), (b"12", 12), (b"64", 64), (b"65", 1), (b"0", 1), (b"-2", 1), (b"x", 1), (b"", 1), (b"9" * 5_000, 1)]
)
def test_what_is_written_as_the_number_of_shards(text: bytes | None, shards: int) -> None:
    assert shards_of(text) == shards
