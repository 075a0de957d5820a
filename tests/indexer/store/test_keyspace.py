"""The names of keys in Redis."""

import pytest

from indexer.core.names import StreamKey
from indexer.errors import SettingError
from indexer.store.keyspace import PARTS, Keyspace, check_namespace, incarnation_beside, stream_id, stream_of, text_of

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
