"""Mechanisms of the product that can be switched off here only: in the simulated Redis, and inside of one process."""

from collections.abc import Callable
from typing import Any

import pytest

from indexer.ownership.moves import Moves
from indexer.receiving.inbox import Inbox
from indexer.receiving.listening import Listening
from indexer.store.flusher import Ownership
from indexer.store.renewal import Renewal
from scorer_api.following import followed_stream, log_reader
from scorer_api.following.followed_stream import Verdict, version_after
from scorer_api.following.loading import Loading
from tests.scenarios import mechanisms
from tests.scenarios.redis import mechanisms as of_redis
from tests.simulation import redis_scripts
from tests.simulation.redis_model import RedisModel, Word

Patch = pytest.MonkeyPatch


def no_fence(patch: Patch) -> None:
    """Who once was a stream's owner may write."""
    for script in ("append", "switch"):
        _before(patch, script, lambda redis, keys, words: [redis.hash(keys[0]).get(b"fence", words[0]), *words[1:]])

    def renew(redis: RedisModel, keys: list[str], words: list[Word]) -> list[Word]:
        for number, lease in enumerate(keys[3 :: 2 + redis_scripts.PARTS]):
            redis.hset(lease, "owner", words[0])
            words[4 + 7 * number + 1] = redis.hash(keys[4 + number * (2 + redis_scripts.PARTS)]).get(b"fence", b"")
        return words

    _before(patch, "renew", renew)


def no_numbers(patch: Patch) -> None:
    """An append is carried out whatever it should follow."""
    _before(patch, "append", lambda redis, keys, words: [words[0], redis.hash(keys[0]).get(b"number", words[1]), *words[2:]])


def no_generation_check(patch: Patch) -> None:
    """A change of one generation is applied to another, and no survey shows it."""
    judge = followed_stream.judge

    def judge_any(held: Any, entry: Any) -> Verdict:
        found = judge(held, entry)
        return Verdict.APPLY if found is Verdict.LOST and entry.generation != held.generation else found

    patch.setattr(log_reader, "judge", judge_any)
    of_redis.no_comparing_of_states(patch)


def no_catching_up(patch: Patch) -> None:
    """What changed while a stream was loaded is left out, as if it had been read."""

    async def skip(self: Loading) -> bool:
        while self._stream.buffered:
            offset, entry = self._stream.buffered.popleft()
            if offset > self.offset:
                self.version, self.offset = version_after(entry), offset
        return True

    patch.setattr(Loading, "_catch_up", skip)


def no_last_look_at_what_was_loaded(patch: Patch) -> None:
    """A scorer takes a load as whole, though another server answered in the middle of it."""

    async def yes(self: Loading, version: Any) -> bool:
        return True

    patch.setattr(Loading, "_is_still_there", yes)


def no_comparing_by_owners(patch: Patch) -> None:
    """Owners do not see that Redis has something else than they wrote."""

    async def ours(self: Renewal, pending: Any, written: Any, answer: Any) -> Ownership:
        return Ownership.LOST if answer[0] == 0 else Ownership.OURS

    patch.setattr(Renewal, "_check", ours)


def no_notice_of_hang_ups(patch: Patch) -> None:
    """An engine that dialled us seems to be connected for good."""
    patch.setattr(Listening, "_forget", lambda self, connection, reason: self._topics.pop(connection, None))


def no_claim_by_dialling(patch: Patch) -> None:
    """An engine that dials another indexer stays with the one that it dialled before."""
    take = Moves._take
    patch.setattr(Moves, "_take", lambda self, known, how: take(self, known, "free" if how == "force" else how))


def no_new_epoch(patch: Patch) -> None:
    """An engine that dials us again seems to go on where it was."""

    def begin(self: Inbox) -> None:
        self.epoch, self.connected = self.epoch or 1, True

    patch.setattr(Inbox, "begin", begin)


def _before(patch: Patch, script: str, change: Callable[[RedisModel, list[str], list[Word]], list[Word]]) -> None:
    carried_out = redis_scripts.SCRIPTS[script]
    patch.setitem(redis_scripts.SCRIPTS, script, lambda redis, keys, words: carried_out(redis, keys, change(redis, keys, words)))


SIMULATED: dict[str, Callable[[Patch], None]] = {
    switch_off.__name__: switch_off
    for switch_off in (
        no_fence,
        no_numbers,
        no_catching_up,
        no_comparing_by_owners,
        no_notice_of_hang_ups,
        no_claim_by_dialling,
        no_new_epoch,
        mechanisms.no_replay_of_gaps,
        mechanisms.no_first_replay,
        mechanisms.no_contiguity_check,
        mechanisms.no_purge_of_lost_history,
        mechanisms.no_probe_of_silence,
        mechanisms.no_fingerprint,
        mechanisms.no_regress,
        mechanisms.no_doubt_of_reconnects,
        mechanisms.no_parking,
        mechanisms.no_forgetting,
        mechanisms.no_clearing,
        of_redis.no_recorded_sequence,
        of_redis.no_buffering,
        of_redis.no_full_write,
        of_redis.one_removal_is_enough,
        of_redis.trusted_for_ever,
    )
}
