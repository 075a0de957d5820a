"""A batch of requests, parted into its requests: each is decoded by itself later, so that a bad one spoils nothing."""

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, defstruct

from indexer.http.negotiation import JSON, MSGPACK
from indexer.http.problems import Problem
from scorer_api.api.schemas import BATCH_REQUESTS_MAX

# A place for each request and one more, by which too many are known: what a body has beyond that is read over, and takes no memory.
_PLACES = [f"request_{number}" for number in range(BATCH_REQUESTS_MAX + 1)]
_Requests = defstruct("_Requests", [(place, Raw | UnsetType, UNSET) for place in _PLACES], array_like=True)


class _Batch(Struct, forbid_unknown_fields=True):
    requests: _Requests  # type: ignore[valid-type]  # made of as many fields as there may be requests


_DECODE = {JSON: msgspec.json.Decoder(_Batch).decode, MSGPACK: msgspec.msgpack.Decoder(_Batch).decode}


def split(body: bytes, media_type: str) -> list[bytes]:
    """The requests of a batch, still encoded. Raises Problem 400 for what is not JSON or msgpack, 422 for what is, and no batch."""
    try:
        batch = _DECODE[media_type](body)
    except msgspec.ValidationError as error:
        raise Problem(422, f"{error}; the body should be an object with requests, a list of score requests") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, f"the body is not valid {media_type}: {error}") from None
    except RecursionError:
        raise Problem(400, "the body is nested too deeply") from None
    found = [bytes(raw) for place in _PLACES if (raw := getattr(batch.requests, place)) is not UNSET]
    if len(found) > BATCH_REQUESTS_MAX:
        raise Problem(422, f"requests: there are more than {BATCH_REQUESTS_MAX}; send at most so many at once")
    return found
