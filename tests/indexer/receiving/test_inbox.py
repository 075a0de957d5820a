"""Messages between the receiving thread and the stream's task."""

from indexer.limits import ReceiveLimits
from indexer.receiving.inbox import Inbox


def inbox(**limits: int) -> Inbox:
    return Inbox(ReceiveLimits(**limits), lambda: None)


def taken(box: Inbox) -> list[tuple[int, list[bytes]]]:
    items = []
    while (item := box.take()) is not None:
        items.append(item)
    return items


def test_messages_come_out_in_order_with_their_epoch() -> None:
    box = inbox()
    box.put([b"a", b"1"])
    box.epoch = 1
    box.put([b"b", b"2"])
    assert taken(box) == [(0, [b"a", b"1"]), (1, [b"b", b"2"])]
    assert box.take() is None


def test_length_and_bytes_are_of_what_waits() -> None:
    box = inbox()
    box.put([b"", b"12345678", b"payload"])
    box.put([b"x"])
    assert (len(box), box.bytes) == (2, 16)
    box.take()
    assert (len(box), box.bytes) == (1, 1)
    box.take()
    assert (len(box), box.bytes) == (0, 0)


def test_the_oldest_go_beyond_so_many_messages() -> None:
    box = inbox(inbox_frames_max=2)
    for number in range(5):
        box.put([b"%d" % number])
    assert (len(box), box.bytes, box.dropped) == (2, 2, 3)
    assert [frames for _, frames in taken(box)] == [[b"3"], [b"4"]]


def test_the_oldest_go_beyond_so_many_bytes() -> None:
    box = inbox(inbox_bytes_max=10)
    for letter in (b"a", b"b", b"c"):
        box.put([letter * 2, letter * 3])
    assert (len(box), box.bytes, box.dropped) == (2, 10, 1)
    box.put([b"12345678"])
    assert (box.bytes, box.dropped) == (8, 3)
    assert taken(box) == [(0, [b"12345678"])]


def test_one_message_larger_than_the_limit_is_kept_until_the_next() -> None:
    box = inbox(inbox_bytes_max=10)
    box.put([b"x" * 11])
    assert (len(box), box.bytes, box.dropped) == (1, 11, 0)
    box.put([b"y"])
    assert taken(box) == [(0, [b"y"])]
    assert box.dropped == 1


def test_a_look_at_the_oldest_leaves_it() -> None:
    box = inbox()
    assert box.peek() is None
    box.put([b"a"])
    assert box.peek() == (0, [b"a"])
    assert (len(box), box.bytes) == (1, 1)


def test_what_older_connections_brought_can_be_thrown_away() -> None:
    box = inbox()
    for epoch in (1, 1, 2, 3):
        box.epoch = epoch
        box.put([b"%d" % epoch])
    box.discard_before(2)
    assert (len(box), box.bytes, box.dropped) == (2, 2, 0)
    assert taken(box) == [(2, [b"2"]), (3, [b"3"])]


def test_throwing_away_all_leaves_an_empty_inbox() -> None:
    box = inbox()
    box.put([b"a"])
    box.discard_before(1)
    assert (len(box), box.bytes) == (0, 0)
    box.discard_before(2)


def test_messages_that_are_put_in_together_are_kept_as_those_that_come_alone() -> None:
    together, alone = inbox(inbox_frames_max=3), inbox(inbox_frames_max=3)
    messages = [[b"%d" % number, b"x" * number] for number in range(5)]
    together.put_all(messages)
    for frames in messages:
        alone.put(frames)
    assert (together.kept(), together.bytes, together.cost, together.dropped) == (alone.kept(), alone.bytes, alone.cost, alone.dropped)
    assert together.kept() == [(0, messages[2]), (0, messages[3]), (0, messages[4])]


def test_some_are_taken_by_number_bytes_and_epoch_and_may_be_put_back() -> None:
    box = inbox()
    messages = [[b"a" * 10], [b"b" * 10], [b"c" * 10], [b"d" * 10]]
    box.put_all(messages[:3])
    box.epoch = 1
    box.put(messages[3])
    before = box.kept(), box.bytes, box.cost
    assert box.take_some(1, 9, 100) == []
    assert box.take_some(0, 2, 100) == messages[:2]
    assert (len(box), box.bytes) == (2, 20)
    box.put_back(0, messages[:2])
    assert (box.kept(), box.bytes, box.cost) == before
    assert box.take_some(0, 9, 11) == messages[:2]
    assert box.take_some(0, 9, 1) == messages[2:3]
    box.put_back(0, messages[:3])
    assert box.take_some(0, 9, 100) == messages[:3]
    assert box.take_some(1, 9, 1) == messages[3:]
    assert (box.take_some(1, 9, 1), box.bytes, box.cost) == ([], 0, 0)
    box.put_back(1, messages[3:])
    assert box.kept() == [(1, messages[3])]


def test_waking_calls_the_stream() -> None:
    woken: list[bool] = []
    Inbox(ReceiveLimits(), lambda: woken.append(True)).wake()
    assert woken == [True]


def test_limits_can_be_widened() -> None:
    box = inbox(inbox_frames_max=1)
    box.put([b"1"])
    box.put([b"2"])
    box.limit(ReceiveLimits(inbox_frames_max=2))
    box.put([b"3"])
    assert taken(box) == [(0, [b"2"]), (0, [b"3"])]
    assert box.dropped == 1


def test_what_waits_can_be_looked_at_and_passed_over_up_to_a_message() -> None:
    box = inbox()
    messages = [[b"%d" % number] for number in range(4)]
    for message in messages:
        box.put(message)
    assert box.kept() == [(0, message) for message in messages]
    box.pass_over(messages[2])
    assert box.kept() == [(0, messages[3])]
    assert box.bytes == 1
