"""What replicas that share a Redis rely on, and how to switch it off. The processes of a test run without it, see tests/patched.py."""

import hashlib
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest
from redis.exceptions import RedisError

from indexer.core import block_table, held_blocks, indexed_keys
from indexer.core.block_runs import in_python
from indexer.core.block_table import HashRecord
from indexer.core.blocks import BlocksInPython
from indexer.core.change import Change
from indexer.core.change_records import ChangeRecords
from indexer.core.held_keys import HeldKeysInPython
from indexer.core.key_claims import KeyClaimsInPython
from indexer.core.places import PARKED, REMOVED
from indexer.core.snapshot import Snapshot
from indexer.core.stream_state import StreamState
from indexer.errors import StoreError
from indexer.ownership.assignment import Assignment, Duty
from indexer.store import keyspace, scripts, session
from indexer.store.client import sentinel
from indexer.store.client.cluster import Cluster
from indexer.store.keyspace import Keyspace
from indexer.store.pending import PendingWrites
from indexer.store.reader import Reader
from indexer.store.registry import Registry
from indexer.store.unconfirmed_registrations import UnconfirmedRegistrations
from indexer.streams.stream import Stream
from scorer_api.api import routes
from scorer_api.following import log_reader
from scorer_api.following.followed_model import FollowedModel
from scorer_api.following.followed_stream import FollowedStream, Verdict

Patch = pytest.MonkeyPatch


# Assignment


def nobody_asks(patch: Patch) -> None:
    """Who has a stream keeps it, whoever comes."""
    duty = Assignment._duty

    def keep(*arguments: Any, **more: Any) -> Duty:
        found = duty(*arguments, **more)
        return Duty.NOTHING if found is Duty.ASK and arguments[1].owner is not None else found

    patch.setattr(Assignment, "_duty", keep)


def leases_without_end(patch: Patch) -> None:
    """A dead indexer's streams stay its own."""
    _before_scripts(patch, "if command == 'PEXPIRE' and string.find(key, ':lease:', 1, true) then return 1 end")


def no_ring(patch: Patch) -> None:
    """Nobody listens but the owner."""
    patch.setattr(Assignment, "_is_next", lambda self, seen, order: False)


def no_recorded_orphans(patch: Patch) -> None:
    """Blocks that wait for their parent are known to the owner alone."""
    _leave_out(patch, PARKED)


def no_recorded_removals(patch: Patch) -> None:
    """Blocks that nothing holds any more are known to the owner alone."""
    _leave_out(patch, REMOVED)


def no_fence(patch: Patch) -> None:
    """Who once was a stream's owner may write."""
    _rewrite(patch, "append", "if held[2] ~= ARGV[1] then return {0} end", "")
    _rewrite(patch, "switch", "if fence ~= ARGV[1] then return {0} end", "")
    _rewrite(patch, "switch", "~= ARGV[2] then", "== '' then")
    _rewrite(patch, "renew", "if (lease[1] and lease[1] ~= ARGV[1]) or (state[2] and state[2] ~= ARGV[at + 1]) then", "if false then")


def no_recorded_sequence(patch: Patch) -> None:
    """A new owner knows what is held, and not how far that goes."""
    resume = Stream.resume

    def forget(self: Stream, head: Any) -> None:
        resume(self, head)
        self._progress.sequence.forget()

    patch.setattr(Stream, "resume", forget)


# Outages


def no_buffering(patch: Patch) -> None:
    """What Redis did not take is not sent again."""

    def give_up(self: PendingWrites, *, is_unsure: bool) -> None:
        self.in_flight = []
        self.sealed.clear()
        self._go_on_from(*self._base)

    patch.setattr(PendingWrites, "take_back", give_up)


def no_full_write(patch: Patch) -> None:
    """A stream is written as a whole once, when it is new."""
    require = PendingWrites.require_full_write
    patch.setattr(PendingWrites, "require_full_write", lambda self: require(self) if self.generation is None else None)


def requests_wait(patch: Patch) -> None:
    """Redis is asked with each request."""
    readers: list[Reader] = []
    begin, read_body = Reader.__init__, routes.read_body

    def remember(self: Reader, *arguments: Any, **more: Any) -> None:
        begin(self, *arguments, **more)
        readers.append(self)

    async def ask_first(*arguments: Any) -> bytes:
        with suppress(StoreError, RedisError):
            await readers[0].directory()
        return await read_body(*arguments)

    patch.setattr(Reader, "__init__", remember)
    patch.setattr(routes, "read_body", ask_first)


def sentinels_asked_when_something_fails(patch: Patch) -> None:
    """Who answers is taken for the master as long as it does."""
    patch.setattr(sentinel, "POLL_S", math.inf)


def registrations_are_not_repeated(patch: Patch) -> None:
    """What was acknowledged to who registered or deleted a pod is done once."""
    patch.setattr(UnconfirmedRegistrations, "note", lambda *words: None)


# Clusters


def slots_are_read_once(patch: Patch) -> None:
    """Which node has which slot is asked at the start; what other nodes say later is not heard."""
    learn, note = Cluster._learn, Cluster._note

    def learn_once(self: Cluster, *words: Any) -> None:
        if not self._is_known:
            learn(self, *words)

    def hear_nothing(self: Cluster, slot: int, *words: Any) -> Any:
        before = self._owners[slot]
        further = note(self, slot, *words)
        self._owners[slot] = before
        return further

    patch.setattr(Cluster, "_learn", learn_once)
    patch.setattr(Cluster, "_note", hear_nothing)


def no_redirections(patch: Patch) -> None:
    """A command is sent to one node, and what that says of others is an error as any."""
    slots_are_read_once(patch)
    patch.setattr(Cluster, "_note", lambda self, *words: None)


def one_slot_for_all(patch: Patch) -> None:
    """What lies in different slots is written and kept together."""
    patch.setattr(session, "slot_of", lambda client, key: 0)


# Followers


def hashes_read_at_once(patch: Patch) -> None:
    """A stream is loaded in one piece."""

    async def read(self: Reader, name: str, cursor: int, count: int) -> tuple[int, dict[bytes, bytes]]:
        found: Any = await self.client.hgetall(name)
        return 0, found

    patch.setattr(Reader, "blocks", read)


def one_removal_is_enough(patch: Patch) -> None:
    """How many engine hashes hold a key is not counted. The tables are those in Python: no method of the compiled ones can be exchanged."""

    def remove(self: HeldKeysInPython, key: int) -> bool:
        self._more.pop(key, None)
        was_held = key in self.keys
        self.keys.discard(key)
        return was_held

    patch.setattr(HeldKeysInPython, "remove", remove)
    patch.setattr(block_table, "make_blocks", BlocksInPython)
    patch.setattr(indexed_keys, "make_held_keys", HeldKeysInPython)
    patch.setattr(indexed_keys, "make_key_claims", KeyClaimsInPython)
    patch.setattr(held_blocks, "make_block_runs", in_python)


def no_doubt_of_the_log(patch: Patch) -> None:
    """What the log has is applied, whatever it should follow."""
    judge = log_reader.judge
    patch.setattr(log_reader, "judge", lambda *words: Verdict.APPLY if (found := judge(*words)) is Verdict.LOST else found)
    no_comparing_of_states(patch)


def no_comparing_of_states(patch: Patch) -> None:
    """What is held is compared with entries of the log only."""
    patch.setattr(FollowedStream, "differs", lambda self, state: False)


def trusted_for_ever(patch: Patch) -> None:
    """A word of an owner holds for good."""
    set_trust = FollowedModel.set_trust

    def trust(self: FollowedModel, stream: FollowedStream) -> None:
        stream.trusted_until_s = math.inf
        set_trust(self, stream)

    patch.setattr(FollowedModel, "set_trust", trust)


# What is kept, and for how long


def drop_block_by_block(patch: Patch) -> None:
    """What a stream held goes field by field."""
    one_by_one = "for _, field in ipairs(redis.call('HKEYS', KEYS[old])) do redis.call('HDEL', KEYS[old], field) end"
    _rewrite(patch, "switch", "redis.call('UNLINK', KEYS[old])", one_by_one)


def gone_pods_are_kept(patch: Patch) -> None:
    """Whoever has an owner lives on, also without an engine."""
    patch.setattr(Stream, "_expire_if_away", lambda self: math.inf)
    _rewrite(patch, "renew", "if ARGV[at + 3] == '1' then", "if true then")


def keys_without_end(patch: Patch) -> None:
    """No key expires."""
    _before_scripts(patch, "if command == 'PEXPIRE' then return 1 end")


def registrations_stay_local(patch: Patch) -> None:
    """A pod is known to the process that was told of it."""

    async def register(self: object, specs: object, *, keeps_old: bool = False) -> bool:
        return True

    patch.setattr(Registry, "register", register)


def one_namespace(patch: Patch) -> None:
    """All services have the same names."""
    begin = Keyspace.__init__
    patch.setattr(Keyspace, "__init__", lambda self, namespace, shards=1: begin(self, "kvi", shards))


def one_model(patch: Patch) -> None:
    """All models have the same names."""
    patch.setattr(keyspace, "xxh3_128_hexdigest", lambda text: "0" * 32)


# How


def _rewrite(patch: Patch, script: str, before: str, after: str) -> None:
    source = scripts.SCRIPTS[script]
    assert before in source, f"{script}.lua has no {before!r}"
    _replace(patch, script, source.replace(before, after))


def _before_scripts(patch: Patch, statement: str) -> None:
    """Each script does this first, whenever it calls Redis with a command and its key."""
    wrapper = f"local call = redis.call\nlocal redis = {{call = function(command, ...) local key = ... {statement} return call(command, ...) end}}\n"
    for script, source in list(scripts.SCRIPTS.items()):
        _replace(patch, script, wrapper + source)


def _replace(patch: Patch, script: str, source: str) -> None:
    patch.setitem(scripts.SCRIPTS, script, source)
    patch.setitem(scripts._DIGESTS, script, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def _leave_out(patch: Patch, left_out: int) -> None:
    """Nothing of this part is written."""
    records, hashes, describe = StreamState.records, Snapshot.hashes, ChangeRecords.describe

    def without(self: StreamState, part: int, wanted: Iterable[int]) -> dict[int, HashRecord | None]:
        return dict.fromkeys(wanted) if part == left_out else records(self, part, wanted)

    def describe_others(self: ChangeRecords, change: Change, *state: Any, **more: Any) -> None:
        describe(self, change, *state, **more)
        if change.records is not None and left_out in change.records:
            change.records[left_out] = dict.fromkeys(change.records[left_out])

    patch.setattr(ChangeRecords, "describe", describe_others)
    patch.setattr(StreamState, "records", without)
    patch.setattr(Snapshot, "hashes", lambda self, part: [] if part == left_out else hashes(self, part))


REDIS_MECHANISMS: dict[str, Callable[[Patch], None]] = {
    switch_off.__name__: switch_off
    for switch_off in (
        nobody_asks,
        leases_without_end,
        no_ring,
        no_recorded_orphans,
        no_recorded_removals,
        no_fence,
        no_recorded_sequence,
        no_buffering,
        no_full_write,
        sentinels_asked_when_something_fails,
        registrations_are_not_repeated,
        requests_wait,
        slots_are_read_once,
        no_redirections,
        one_slot_for_all,
        hashes_read_at_once,
        one_removal_is_enough,
        no_doubt_of_the_log,
        no_comparing_of_states,
        trusted_for_ever,
        drop_block_by_block,
        gone_pods_are_kept,
        keys_without_end,
        registrations_stay_local,
        one_namespace,
        one_model,
    )
}
