"""Reading request bodies of other indexers' clients."""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from indexer.core.block_keys import pack_tokens
from indexer.http.negotiation import join
from scorer_api.tokens.token_lists import first_out_of_range, take_tokens

T = TypeVar("T")


class Unreadable(Exception):
    """The body is none. Attributes: `detail`; `is_malformed`, whether it is no document at all."""

    def __init__(self, detail: str, *, is_malformed: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.is_malformed = is_malformed


class Tokens(Struct, frozen=True):
    """A decoded request and its tokens, packed."""

    request: Any
    packed: bytes


def decoded(body: bytes, decode: Callable[[bytes], T]) -> T:
    """Raises Unreadable."""
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        raise Unreadable(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(str(error), is_malformed=True) from None
    except RecursionError:
        raise Unreadable("recursion limit exceeded", is_malformed=True) from None


async def decode_tokens(body: bytes, media_type: str, decode: Callable[[bytes], Any]) -> Tokens:
    """The request and its `token_ids`. Others have their turn where there are many. Raises Unreadable."""
    taken = await take_tokens(body, "token_ids", media_type)
    request = decoded(body if taken is None else taken.body, decode)
    if taken is not None and (taken.left is None or len(request.token_ids) != taken.left):
        taken, request = None, decoded(body, decode)  # it was another object's list, or what is wrong with it is told for the whole body
    count = 0 if taken is None else taken.count
    given = request.token_ids
    if isinstance(given, bytes):
        return Tokens(request, given)
    if taken is not None and taken.bad is not None:
        raise out_of_range(*taken.bad)
    try:
        packed = pack_tokens(given)
    except OverflowError:
        position, token = first_out_of_range(given)
        raise out_of_range(count + position, token) from None
    return Tokens(request, packed if taken is None else await join([taken.tokens, packed]))


def out_of_range(position: int, token: int) -> Unreadable:
    """What is said of a token that is none."""
    return Unreadable(f"token_ids[{position}]: invalid value: integer `{token}`, expected u32")
