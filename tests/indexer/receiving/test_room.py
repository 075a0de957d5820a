"""What all inboxes may hold together."""

from indexer.limits import ReceiveLimits
from indexer.receiving.inbox import Inbox
from indexer.receiving.room import KEPT_SHARE, MESSAGE_OVERHEAD, Room, cost

KIB = 2**10


def inboxes(room: Room, count: int) -> list[Inbox]:
    return [Inbox(ReceiveLimits(), room=room) for _ in range(count)]


def test_what_all_hold_together_has_a_bound_whoever_fills_them() -> None:
    room = Room(100 * KIB)
    boxes = inboxes(room, 60)
    for number in range(50):
        for box in boxes:
            box.put([b"", number.to_bytes(8), bytes(KIB)])
            assert room.used <= room.bytes_max
            assert room.used == sum(other.cost for other in boxes[:1] + boxes[1:])
    assert room.used > room.bytes_max * KEPT_SHARE / 2
    assert sum(box.dropped for box in boxes) > 60 * 40


def test_who_holds_little_loses_nothing() -> None:
    room = Room(100 * KIB)
    calm, *flooding = inboxes(room, 5)
    calm.put([b"calm"])
    for _ in range(200):
        for box in flooding:
            box.put([bytes(KIB)])
    assert (len(calm), calm.dropped) == (1, 0)
    assert all(box.dropped > 100 for box in flooding)
    calm.put([b"again"])
    assert len(calm) == 2


def test_an_inbox_that_was_emptied_takes_no_share() -> None:
    room = Room(100 * KIB)
    one, *others = inboxes(room, 100)
    for box in others:
        box.put([b"x"])
        box.take()
    for _ in range(60):
        one.put([bytes(KIB)])
    assert (one.dropped, room.used) == (0, one.cost)
    one.clear()
    assert room.used == 0


def test_small_messages_count_with_what_is_kept_around_them() -> None:
    assert cost([b"x"]) > MESSAGE_OVERHEAD
    room = Room(100 * KIB)
    (box,) = inboxes(room, 1)
    for _ in range(10_000):
        box.put([b"x"])
    assert len(box) * cost([b"x"]) == box.cost <= room.bytes_max


class Part:
    """A connection."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.is_cut = False

    def cut(self) -> None:
        self.is_cut = True
        self._room.note_pending(self, 0)


def test_of_parts_of_messages_the_largest_is_given_up() -> None:
    room = Room(100 * KIB)
    parts = [Part(room) for _ in range(5)]
    for size, part in enumerate(parts, 1):
        room.note_pending(part, size * KIB)
    assert not any(part.is_cut for part in parts)
    for size in (8 * KIB, 13 * KIB):
        room.note_pending(parts[1], size)
    assert [part.is_cut for part in parts] == [False, True, False, False, False]
    room.note_pending(parts[1], 0)
    room.note_pending(parts[0], 99 * KIB)
    assert parts[0].is_cut
