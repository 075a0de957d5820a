"""What counts of the requests that a scorer sent, and how long."""

import math

import pytest

from scorer_api.routing.costs import LoadEstimate, PodQueue
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
    queue = queues.look("m", "pod", 1.0, LoadEstimate(0, 0, 0.0, 1.0), 0.5)
    assert (queue.tokens, queue.new_tokens, queue.new_count) == (10, 10, 2)
    assert queue.busy == pytest.approx(10 / 3)
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
    queues.expire(1.0 + 600.0)
    assert not queues._lately


def look(queues: Queues, now_s: float, waiting: int = 0, waiting_tokens: float = 0.0, measured_at_s: float | None = 0.0) -> PodQueue:
    """The queue of the pod a, which computes 100 tokens a second."""
    return queues.look("m", "a", now_s, LoadEstimate(waiting_tokens, 0, 0.0, 100.0, waiting=waiting), measured_at_s)


def queued(queues: Queues, now_s: float, waiting: int = 0, waiting_tokens: float = 0.0, measured_at_s: float | None = 0.0) -> float:
    """The tokens that are queued there."""
    return look(queues, now_s, waiting, waiting_tokens, measured_at_s).tokens


def awaited(*requests: tuple[str, int, float]) -> Queues:
    """Requests to the pod a that it is to announce: name, tokens, time of the pick."""
    queues = Queues(100.0)
    for name, tokens, at_s in requests:
        queues.add(name, sent(tokens, at_s))
        queues.await_announcement(name)
    return queues


def test_what_was_sent_is_queued_until_the_pod_can_have_computed_it() -> None:
    queues = Queues(100.0)
    queues.add("1", sent(300, 1.0))
    queues.add("2", sent(200, 2.0))
    assert queued(queues, 2.0) == 400
    assert queued(queues, 4.0) == 200
    assert queued(queues, 9.0) == 0


def test_what_a_pod_announces_corrects_what_it_was_thought_to_have_computed() -> None:
    """By its rate it would have 100 tokens left at 5.0, but it has just computed the first prompt; and it is faster with the second one."""
    queues = awaited(("1", 200, 0.0), ("2", 300, 0.0), ("3", 50, 0.0))
    assert queued(queues, 4.5) == 100
    queues.computed("1")
    assert queued(queues, 5.0) == 350
    assert queued(queues, 6.0) == 250
    queues.computed("2")
    assert queued(queues, 6.1) == 50
    queues.computed("1")
    queues.computed("unknown")
    assert queued(queues, 6.1) == 50, "told twice"


def test_an_announced_prompt_was_computed_with_those_before_it() -> None:
    queues = awaited(*((str(number), 100, 0.0) for number in range(4)))
    queues.add("held", sent(7, 0.0))
    queue = look(queues, 0.0)
    assert (queue.tokens, queue.pending) == (407, 4), "what the pod holds all blocks of is not announced"
    queues.computed("2")
    queue = look(queues, 0.0)
    assert (queue.tokens, queue.pending) == (100, 1)
    queues.done("3")
    queue = look(queues, 0.0)
    assert (queue.tokens, queue.pending) == (100, 0), "who is done may have been computed elsewhere"


@pytest.mark.parametrize(("waiting", "waiting_tokens", "more"), [(1, 500, 0), (2, 1000, 0), (4, 2000, 1000), (0, 0, 0)])
def test_of_what_waits_at_a_pod_that_which_others_sent_is_queued_besides(waiting: int, waiting_tokens: float, more: float) -> None:
    """Two of its requests from here were pending when its load was measured at 3.0; what came later waits behind all."""
    queues = awaited(("1", 100, 0.0), ("2", 100, 1.0), ("3", 100, 2.0), ("4", 100, 3.5))
    queues.computed("1")
    assert queued(queues, 3.5, waiting, waiting_tokens, measured_at_s=3.0) == 300 + more


def test_at_a_pod_that_announces_nothing_all_that_waited_is_queued_and_what_was_sent_since() -> None:
    queues = Queues(100.0)
    queues.add("1", sent(100, 0.0))
    queues.add("2", sent(50, 3.5))
    assert queued(queues, 3.5, 2, 700.0, measured_at_s=3.0) == 750


def test_where_nothing_was_sent_what_waits_is_all_of_others() -> None:
    assert queued(Queues(100.0), 1.0, 2, 700.0) == 700


def test_where_no_load_is_known_a_guess_and_what_was_sent_are_queued() -> None:
    queues = Queues(100.0)
    queues.add("1", sent(100, 0.0))
    assert queued(queues, 0.5, 3, 40.0, measured_at_s=None) == 140


def test_those_that_were_sent_just_before_a_measurement_waited_then() -> None:
    """They may still have been under way. That others sent what waited would count them twice."""
    queues = awaited(("1", 100, 0.0), ("2", 100, 2.95), ("3", 100, 2.99))
    queues.computed("1")
    assert queued(queues, 3.0, 2, 1000.0, measured_at_s=3.0) == 200


def test_those_that_were_announced_since_a_measurement_wait_no_longer() -> None:
    """Five of these were sent from here, and one by another scorer. Of those from here the first one is being computed."""
    queues = awaited(*((str(number), 100, 0.1 * number) for number in range(6)))
    queues.computed("0")
    assert look(queues, 3.0, 6, 600.0, measured_at_s=3.0).waiting == pytest.approx(4 + 1)
    queues.computed("3")
    assert look(queues, 3.5, 6, 600.0, measured_at_s=3.0).waiting == pytest.approx(1 + 1)
    assert look(Queues(100.0), 3.5, 6, 600.0, measured_at_s=3.0).waiting == 6


def test_others_are_expected_to_have_sent_as_much_since_the_measurement() -> None:
    """Two requests for each one from here. The first one was there at the measurement, so it says nothing of what came since."""
    queues = awaited(("0", 100, 0.0), ("1", 200, 2.0), ("2", 100, 3.5), ("3", 100, 3.6))
    queues.computed("0")
    load = LoadEstimate(0, 0, 0.0, 100.0)
    alone, among = (queues.look("m", "a", 3.6, load, 3.0, others) for others in (0.0, 2.0))
    assert (alone.tokens, alone.waiting, alone.new_tokens, alone.new_count) == (400, 2, 200, 2)
    assert (among.tokens, among.waiting, among.new_tokens, among.new_count) == (400 + 2 * 200, 2 + 2 * 2, 3 * 200, 3 * 2)
    assert among.busy == pytest.approx(3 * alone.busy)
    queues.computed("2")
    among = queues.look("m", "a", 3.6, load, 3.0, 2.0)
    assert (among.tokens, among.waiting) == (100 + 2 * 100, 2), "theirs have been computed as well"


def test_where_nothing_is_announced_all_that_waited_does() -> None:
    queues = Queues(100.0)
    queues.add("1", sent(100, 0.0))
    assert look(queues, 3.0, 6, 600.0, measured_at_s=3.0).waiting == 6
    assert look(queues, 3.0, 6, 600.0, measured_at_s=None).waiting == 6


def test_a_pod_is_busy_by_what_was_sent_there_of_late() -> None:
    """600 tokens are two seconds' work of three; three seconds later they count for 1/e."""
    queues = Queues(1.0)
    assert look(queues, 0.0).busy == 0
    queues.add("1", sent(450, 0.0))
    queues.add("2", sent(150, 0.0))
    assert look(queues, 0.0).busy == pytest.approx(2.0)
    queues.done("1")
    queues.expire(3.0)
    assert look(queues, 3.0).busy == pytest.approx(2.0 / math.e), "whether they are done does not matter"
    queues.add("3", sent(300, 3.0))
    assert look(queues, 3.0).busy == pytest.approx(2.0 / math.e + 1)
    queues.relieve("3")
    assert look(queues, 3.0).busy == pytest.approx(2.0 / math.e), "another pod computes it"
    queues.expire(3.0 + 600.0)
    assert look(queues, 603.0).busy == 0


def test_what_was_sent_of_late_takes_a_part_of_the_cache() -> None:
    """Of 2,000 tokens 500 are new; a minute later they count for 1/e. Who does not say how many there are has room for all."""
    queues = Queues(1.0)
    queues.add("1", sent(400, 0.0))
    queues.add("2", sent(100, 0.0))
    load = LoadEstimate(0, 0, 0.0, 100.0, 2_000.0)
    assert queues.look("m", "a", 0.0, load, 0.0).renewed == pytest.approx(0.25)
    assert queues.look("m", "a", 0.0, load, 0.0, 3.0).renewed == pytest.approx(1.0), "others sent as much, three times"
    assert queues.look("m", "b", 0.0, load, 0.0).renewed == look(queues, 0.0).renewed == 0
    queues.expire(60.0)
    assert queues.look("m", "a", 60.0, load, 0.0).renewed == pytest.approx(0.25 / math.e)
