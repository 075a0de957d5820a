"""The Lua scripts, and calling several of them in one round trip."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError

from indexer.store.client.connection import Client, answer_of, server_epoch_of

_FOLDER = Path(__file__).parent / "lua"
_PRELUDE = "prelude"
_SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_FOLDER.glob("*.lua"))}
SCRIPTS = {name: f"{_SOURCES[_PRELUDE]}\n{source}" for name, source in _SOURCES.items() if name != _PRELUDE}
_DIGESTS = {name: hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest() for name, source in SCRIPTS.items()}

Word = bytes | str | int


class Call(Struct, frozen=True):
    """One call of a script; its contract is the head comment of `lua/{script}.lua`."""

    script: str
    keys: Sequence[str]
    words: Sequence[Word] = ()


async def call(client: Client, script: str, keys: Sequence[str], *words: Word) -> Any:
    """The script's answer. Raises redis.exceptions.RedisError."""
    (answer,) = await call_all(client, [Call(script, keys, words)])
    if isinstance(answer, RedisError):
        raise answer
    return answer


async def call_all(client: Client, calls: Sequence[Call]) -> list[Any]:
    """The answers, in order; a call that failed has its error as its answer.

    Raises redis.exceptions.RedisError where nothing can be said of any of them.
    """
    epoch = server_epoch_of(client)
    answers = await _send(client, calls, "EVALSHA", _DIGESTS)
    again = [position for position, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
    if again:
        if epoch != server_epoch_of(client):
            raise RedisConnectionError("Redis is another server than these calls were made for")
        # A server that has carried out a script by its text knows it by its digest from then on. Of a Cluster that is the node which needs it.
        for position, answer in zip(again, await _send(client, [calls[position] for position in again], "EVAL", SCRIPTS), strict=True):
            answers[position] = answer
    return answers


async def _send(client: Client, calls: Sequence[Call], command: str, scripts: Mapping[str, str]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for each in calls:
        pipeline.execute_command(command, scripts[each.script], len(each.keys), *each.keys, *each.words)
    return await answer_of(pipeline.execute(raise_on_error=False))


def pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    """What Redis returns flat: field, value, field, value …"""
    return list(zip(flat[::2], flat[1::2], strict=True))
