"""Every transition of a stream's phase, and the trust that follows."""

from collections.abc import Iterable
from itertools import product

import pytest

from indexer.core.names import Trust
from indexer.streams.trust import COMPLETE_AFTER, TRANSITIONS, Phase, Signal, TrustState

STATES = [TrustState(phase, is_complete) for phase, is_complete in product(Phase, (False, True))]
ASKED = {Phase.UNVERIFIED, Phase.RECOVERING, Phase.CONFIRMED}
CONNECTING = {Signal.CONNECTED, Signal.CONNECTED_EMPTY, Signal.CONNECTED_NO_REPLAY, Signal.CONNECTED_NO_REPLAY_EMPTY}


def after(*signals: Signal, start: TrustState | None = None) -> TrustState:
    state = start or TrustState()
    for signal in signals:
        state = state.after(signal)
    return state


def walk(starts: Iterable[TrustState], signals: Iterable[Signal]) -> set[TrustState]:
    """All states that these signals lead to, in whatever order and number."""
    signals = list(signals)
    found: set[tuple[Phase, bool]] = set()
    new = {(state.phase, state.is_complete) for state in starts}
    while new:
        found |= new
        reached = (TrustState(*state).after(signal) for state in new for signal in signals)
        new = {(state.phase, state.is_complete) for state in reached} - found
    return {TrustState(*state) for state in found}


def test_every_state_can_be_reached() -> None:
    assert walk([TrustState()], Signal) == set(STATES)


@pytest.mark.parametrize(("state", "signal"), list(product(STATES, Signal)), ids=str)
def test_each_signal_does_to_each_state_what_the_tables_say(state: TrustState, signal: Signal) -> None:
    found = state.after(signal)
    assert found.phase is TRANSITIONS.get(signal, {}).get(state.phase, state.phase)
    assert found.is_complete is COMPLETE_AFTER.get(signal, state.is_complete)
    assert found.after(signal) == found, "a signal that comes twice is one"


@pytest.mark.parametrize("state", STATES, ids=str)
def test_the_trust_of_each_state(state: TrustState) -> None:
    assert state.trust(is_current=False) is (Trust.EXPIRED if state.phase is Phase.EXPIRED else Trust.STALE)
    expected = {
        Phase.EXPIRED: Trust.EXPIRED,
        Phase.CONFIRMED: Trust.LIVE if state.is_complete else Trust.PARTIAL,
        Phase.NO_REPLAY: Trust.LIVE if state.is_complete else Trust.PARTIAL,
    }
    assert state.trust(is_current=True) is expected.get(state.phase, Trust.STALE)


def test_only_a_new_connection_ends_an_expiry() -> None:
    assert {state.phase for state in walk([TrustState(Phase.EXPIRED)], set(Signal) - CONNECTING)} == {Phase.EXPIRED}
    assert all(state.after(signal).phase is not Phase.EXPIRED for state in STATES for signal in CONNECTING)


def test_only_a_new_connection_makes_what_is_held_doubtful_again() -> None:
    others = set(Signal) - CONNECTING
    assert Phase.UNVERIFIED not in {state.phase for state in walk([TrustState(Phase.RECOVERING)], others)}
    assert {signal for signal in Signal if after(signal, start=TrustState(Phase.CONFIRMED)).phase is Phase.UNVERIFIED} == {Signal.CONNECTED}


def test_who_gave_up_asks_no_more_on_this_connection() -> None:
    others = set(Signal) - CONNECTING
    reached = {state.phase for state in walk([after(Signal.GAVE_UP, start=TrustState(Phase.RECOVERING))], others)}
    assert reached == {Phase.NO_REPLAY_WAITING, Phase.NO_REPLAY, Phase.EXPIRED}
    assert not TrustState(Phase.NO_REPLAY_WAITING).can_be_asked
    assert not TrustState(Phase.NO_REPLAY).can_be_asked
    assert all(TrustState(phase).can_be_asked for phase in ASKED)


def test_nothing_but_a_replay_a_live_batch_or_a_found_record_confirms() -> None:
    confirming = {
        signal
        for state, signal in product(STATES, set(Signal) - CONNECTING)
        if not state.is_confirmed and state.after(signal).is_confirmed
    }  # fmt: skip
    assert confirming == {Signal.REPLAYED, Signal.REPLAYED_EMPTY, Signal.GAVE_UP_EMPTY, Signal.LIVE_BATCH, Signal.FOUND}


def test_a_first_connection_is_live_after_an_empty_replay_and_after_one_from_the_start() -> None:
    assert after(Signal.CONNECTED_EMPTY, Signal.REPLAYED_EMPTY).trust(is_current=True) is Trust.LIVE
    assert after(Signal.CONNECTED_EMPTY, Signal.WHOLE, Signal.REPLAYED).trust(is_current=True) is Trust.LIVE
    assert after(Signal.CONNECTED_EMPTY, Signal.HISTORY_LOST, Signal.REPLAYED).trust(is_current=True) is Trust.PARTIAL


def test_a_reconnect_keeps_what_is_complete_only_where_the_engine_can_be_asked() -> None:
    held = TrustState(Phase.CONFIRMED, is_complete=True)
    assert after(Signal.CONNECTED, start=held).trust(is_current=True) is Trust.STALE
    assert after(Signal.CONNECTED, Signal.VERIFIED, Signal.REPLAYED, start=held).trust(is_current=True) is Trust.LIVE
    assert after(Signal.CONNECTED, Signal.FORGOTTEN, Signal.REPLAYED, start=held).trust(is_current=True) is Trust.PARTIAL
    assert after(Signal.CONNECTED_NO_REPLAY, start=held).trust(is_current=True) is Trust.STALE
    assert after(Signal.CONNECTED_NO_REPLAY, Signal.LIVE_BATCH, start=held).trust(is_current=True) is Trust.PARTIAL


def test_a_gap_is_stale_until_it_is_replayed() -> None:
    live = TrustState(Phase.CONFIRMED, is_complete=True)
    assert after(Signal.GAP, start=live).trust(is_current=True) is Trust.STALE
    assert after(Signal.GAP, Signal.RECOVERY_STARTED, Signal.REPLAYED, start=live) == live


def test_a_clear_makes_a_partial_stream_complete_and_a_refusal_the_reverse() -> None:
    live = TrustState(Phase.CONFIRMED, is_complete=True)
    assert after(Signal.REFUSED, start=live).trust(is_current=True) is Trust.PARTIAL
    assert after(Signal.REFUSED, Signal.WHOLE, start=live) == live


def test_what_was_found_after_a_takeover_goes_on() -> None:
    assert after(Signal.CONNECTED_NO_REPLAY, Signal.FOUND).trust(is_current=True) is Trust.PARTIAL
    assert after(Signal.CONNECTED_NO_REPLAY, Signal.FOUND, Signal.WHOLE).trust(is_current=True) is Trust.LIVE


def test_after_an_error_of_ours_everything_is_asked_for_again() -> None:
    failed = after(Signal.FAILED, start=TrustState(Phase.CONFIRMED, is_complete=True))
    assert (failed.phase, failed.is_complete) == (Phase.RECOVERING, False)
