"""From what a gateway says of a request to what is asked of the picker: `/v1/pick` and the endpoint picker read the same headers."""

from collections.abc import Mapping

from indexer.http.negotiation import JSON
from scorer_api.api.client_body import ByLoad
from scorer_api.api.pick import Asked
from scorer_api.api.schemas import TEXT_LENGTH_MAX

SESSION = "x-session-id"
# Set by a body-based router in front of the gateway.
MODEL = "x-gateway-model-name"
# Some clients send JSON under these too, or under none.
_JSON_TYPES = ("", JSON, "application/x-www-form-urlencoded", "text/plain")


def why_unread(headers: Mapping[str, str]) -> ByLoad | None:
    """Why the body of a request with these headers, in lower case, is not read; None where it is."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in _JSON_TYPES and not media_type.endswith("+json"):
        return "other_type"
    return None if headers.get("content-encoding", "identity") == "identity" else "other_type"


def asked_of(headers: Mapping[str, str], path: str, body: bytes | None, by_load: ByLoad | None) -> Asked:
    """What to ask about a request with these headers, in lower case. `by_load`: why the body is not read."""
    session_id = headers.get(SESSION)
    if session_id is not None and not 0 < len(session_id) <= TEXT_LENGTH_MAX:
        session_id = None
    return Asked(body, path, by_load, headers.get(MODEL), session_id, is_anthropic="anthropic-version" in headers)
