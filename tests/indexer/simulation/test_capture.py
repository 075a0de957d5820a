"""Files of recordings, down to their bytes."""

from pathlib import Path

import msgspec
import pytest

from indexer.errors import SettingError
from indexer.simulation.capture import CaptureWriter, Exchange, Message, read_exchanges, read_messages, replays_beside

FIRST = Message(1.5, "A", [b"t", bytes(8), b"x"])
SECOND = Message(2.5, "B", [b"", b"odd"])
# By hand: array32 of 2; [1.5, "A", [b"t", eight zeros, b"x"]]; [2.5, "B", [b"", b"odd"]].
WRITTEN = bytes.fromhex("dd00000002 93cb3ff8000000000000a141 93c40174c4080000000000000000c40178 93cb4004000000000000a142 92c400c4036f6464")


def written(path: Path, *items: Message) -> CaptureWriter:
    writer = CaptureWriter(str(path), "--out")
    for item in items:
        writer.add(item)
    return writer


def test_a_file_is_one_list_whose_count_is_kept_up(tmp_path: Path) -> None:
    path = tmp_path / "f"
    writer = written(path, FIRST)
    assert path.read_bytes() == bytes.fromhex("dd00000000"), "what was not flushed is not there"
    writer.flush()
    assert msgspec.msgpack.decode(path.read_bytes()) == [[1.5, "A", [b"t", bytes(8), b"x"]]]
    writer.add(SECOND)
    assert writer.size == len(WRITTEN)
    writer.close()
    writer.close()
    assert path.read_bytes() == WRITTEN
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_messages(str(path)) == ([FIRST, SECOND], 0)


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_what_is_whole_is_read_whatever_the_count_says(tmp_path: Path, count: int) -> None:
    """A writer that was killed between the items and their count leaves one that is too low."""
    path = tmp_path / "f"
    path.write_bytes(b"\xdd" + count.to_bytes(4, "big") + WRITTEN[5:])
    assert read_messages(str(path)) == ([FIRST, SECOND], 0)


@pytest.mark.parametrize("missing", [1, 5, 15])
def test_what_is_cut_short_is_left_out_and_counted(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(WRITTEN[:-missing])
    second = len(msgspec.msgpack.encode(SECOND))
    assert read_messages(str(path)) == ([FIRST], second - missing)


@pytest.mark.parametrize("content", [b"", b"\xdd\x00", b"text", b"\x80", b"\x91\x01", b"\x91\x93\x01\x02\x03", b"\x91" + b"\x91" * 100_000])
def test_what_is_no_recording_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    if content == b"\x91" + b"\x91" * 100_000:
        assert read_messages(str(path)) == ([], 100_000), "an entry that never ends"
        return
    with pytest.raises(SettingError, match="received_at_s"):
        read_messages(str(path))


def test_replays_and_where_they_are_looked_for(tmp_path: Path) -> None:
    exchange = Exchange(1.0, "A", bytes(8), "from 0", True, [(1.1, [b"", b"\xff" * 8, b""])], 1.2)
    writer = CaptureWriter(str(tmp_path / "r.replays.msgpack"), "--out")
    writer.add(exchange)
    writer.close()
    assert read_exchanges(str(tmp_path / "r.replays.msgpack")) == [exchange]
    assert replays_beside(str(tmp_path / "r.frames.msgpack")) == str(tmp_path / "r.replays.msgpack")
    assert replays_beside(str(tmp_path / "s.frames.msgpack")) is None
    assert replays_beside(str(tmp_path / "other")) is None
