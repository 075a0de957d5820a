"""What counts of the requests that a scorer sent, and how long."""

from scorer_api.routing.queues import QueuedRequest, Queues


def sent(tokens: int, at_s: float, pod: str = "a", rank: int = 0, model: str = "m") -> QueuedRequest:
    return QueuedRequest(model, pod, rank, tokens, at_s)


def test_all_that_was_sent_counts_where_no_load_is_known() -> None:
    queues = Queues(10.0)
    queues.add("1", sent(100, 1.0))
    queues.add("2", sent(50, 2.0))
    queues.add("3", sent(7, 2.0, "b"))
    queues.add("4", sent(9, 2.0, model="n"))
    assert queues.ahead("m", "a", None) == (150, 2)
    assert queues.ahead("m", "b", None) == (7, 1)
    assert queues.ahead("n", "a", None) == (9, 1)
    assert queues.ahead("m", "c", None) == (0, 0)


def test_only_what_came_after_the_measurement_counts_where_one_is_known() -> None:
    """Or was still under way then: sent in the tenth of a second before."""
    queues = Queues(10.0)
    for name, at_s in (("1", 1.0), ("2", 1.95), ("3", 2.5)):
        queues.add(name, sent(100, at_s))
    assert queues.ahead("m", "a", 2.0) == (200, 2)
    assert queues.ahead("m", "a", 2.2) == (100, 1)
    assert queues.ahead("m", "a", 9.0) == (0, 0)
    assert queues.ahead("m", "a", None) == (300, 3), "a load that is not known any more tells nothing of them"


def test_what_is_done_counts_no_more_and_only_once() -> None:
    queues = Queues(10.0)
    queues.add("1", sent(100, 1.0))
    queues.add("2", sent(30, 1.0))
    assert queues.done("1")
    assert not queues.done("1")
    assert not queues.done("never")
    assert queues.ahead("m", "a", None) == queues.ahead("m", "a", 0.5) == (30, 1)


def test_what_is_done_after_the_engine_counted_it_is_one_less_until_the_engine_counts_again() -> None:
    queues = Queues(10.0)
    queues.add("1", sent(100, 1.0))
    queues.add("2", sent(30, 5.0))
    assert queues.ahead("m", "a", 3.0) == (30, 1)
    assert queues.done("1")
    assert queues.ahead("m", "a", 3.0) == (30, 0)
    assert queues.ahead("m", "a", 4.0) == (30, 1)


def test_what_is_forgotten_has_not_ended() -> None:
    queues = Queues(10.0)
    queues.add("1", sent(100, 1.0))
    queues.add("2", sent(30, 5.0))
    assert queues.ahead("m", "a", 3.0) == (30, 1)
    assert queues.expire(11.0) == (1, 0)
    assert queues.ahead("m", "a", 3.0) == (30, 1)


def test_what_is_never_told_to_be_done_counts_for_its_time() -> None:
    queues = Queues(10.0)
    queues.add("1", sent(100, 1.0))
    queues.add("2", sent(30, 5.0))
    assert queues.expire(10.9) == (0, 0)
    assert queues.expire(11.0) == (1, 0)
    assert queues.ahead("m", "a", None) == (30, 1)
    assert not queues.done("1")


def test_there_is_room_for_so_many_and_the_oldest_go() -> None:
    queues = Queues(10.0, requests_max=3)
    for number in range(5):
        queues.add(str(number), sent(1, float(number)))
    assert queues.expire(5.0) == (0, 2)
    assert len(queues) == 3
    assert [queues.done(str(number)) for number in range(5)] == [False, False, True, True, True]


def test_a_request_whose_prompt_another_pod_computes_counts_without_its_tokens() -> None:
    queues = Queues(10.0)
    queues.add("a", QueuedRequest("m", "pod", 0, 100, 1.0))
    queues.add("b", QueuedRequest("m", "pod", 0, 10, 1.0))
    queues.relieve("a")
    queues.relieve("unknown")
    assert queues.ahead("m", "pod", None) == (10, 2)
    assert queues.ahead("m", "pod", 0.5) == (10, 2)
    assert queues.backlog("m", "pod", 1.0, 1.0) == 10
    assert queues.done("a")
    assert queues.ahead("m", "pod", 0.5) == (10, 1)
    assert queues.done("b")
    assert queues.ahead("m", "pod", None) == (0, 0)


def test_ranks_count_by_themselves() -> None:
    queues = Queues(10.0)
    queues.add("1", sent(1, 1.0, rank=1))
    queues.add("2", sent(1, 1.0, rank=1))
    assert [queues.at_rank("m", "a", rank) for rank in (0, 1)] == [0, 2]
    queues.done("1")
    assert queues.at_rank("m", "a", 1) == 1


def test_nothing_is_kept_of_what_is_over() -> None:
    queues = Queues(10.0)
    for number in range(1000):
        queues.add(str(number), sent(1, 1.0, f"pod {number}"))
    assert queues.expire(20.0) == (1000, 0)
    assert len(queues) == 0
    assert queues._pods == {}
