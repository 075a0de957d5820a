"""What `--discover` says: where engines are looked for, and what is not told there about them."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

import msgspec
from msgspec import Meta, Struct

from indexer.core.stream_state import Counting
from indexer.engines.spec import NAME_LENGTH_MAX, RANKS_MAX, Name, Role
from indexer.errors import SettingError, field_first

Kind = Literal["inferencepool", "pods", "service", "dns"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Port = Annotated[int, Meta(ge=1, le=65535)]

_FORMS = "inferencepool:NAMESPACE/NAME, pods:NAMESPACE?selector=app=vllm, service:NAMESPACE/NAME, dns:NAME?port=8000 or dns:_http._tcp.NAME"
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_NAMESPACE = re.compile(_LABEL)
_OBJECT = re.compile(rf"(?P<namespace>{_LABEL})/(?P<name>{_LABEL}(\.{_LABEL})*)")
_DNS_NAME = re.compile(r"(?=.{1,253}$)_?[A-Za-z0-9]([-\w]{0,61}\w)?(\._?[A-Za-z0-9]([-\w]{0,61}\w)?)*\.?")
SELECTOR_LENGTH_MAX = 2_048


class EngineOptions(Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True):
    """What is said of engines besides their addresses; None where nothing is. Rank r is at `events_port` + r and `replay_port` + r.

    The keys are those of a source behind its `?`, and those of a pod's annotations behind `kv-indexer/`.
    """

    http_port: Port | None = None
    events_port: Port | None = None
    replay_port: Port | Literal["none"] | None = None
    ranks: Annotated[int, Meta(ge=1, le=RANKS_MAX)] | None = None
    model: Name | None = None
    topic: Annotated[str, Meta(max_length=NAME_LENGTH_MAX)] | None = None
    counting: Counting | None = None
    role: Role | None = None

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Self:
        """Raises ValueError that names the key."""
        try:
            return msgspec.convert(given, cls, strict=False)
        except msgspec.ValidationError as error:
            raise ValueError(field_first(str(error))) from None

    def over(self, others: Self) -> Self:
        """These, and the others where these say nothing."""
        said: dict[str, Any] = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return msgspec.structs.replace(others, **said)


OPTIONS: tuple[str, ...] = EngineOptions.__struct_encode_fields__


class DiscoverSpec(Struct, frozen=True):
    """One source. `text`: as the user wrote it. `name`: of the object, or the DNS name. `options`: for engines that say nothing else themselves."""

    text: str
    kind: Kind
    namespace: str = ""
    name: str = ""
    selector: str = ""
    options: EngineOptions = EngineOptions()

    @classmethod
    def from_text(cls, text: str, source: str = "--discover") -> Self:
        """Parse `pods:inference?selector=app=vllm&events-port=5557`. Raises SettingError."""
        kind, colon, rest = text.partition(":")
        where, _, query = rest.partition("?")
        if kind not in KINDS or not colon:
            raise SettingError(source, text, f"should be {_FORMS}")
        selector, options = _query(query, kind, text, source)
        namespace, name = _place(kind, where, text, source)
        if kind == "pods" and not selector:
            raise SettingError(source, text, "needs ?selector=, else every pod of the namespace would be an engine")
        if kind == "dns" and not name.startswith("_") and options.http_port is None:
            raise SettingError(source, text, "needs ?port=, the port of the engines' API; only names like _http._tcp.NAME tell it")
        return cls(text, kind, namespace, name, selector, options)


def _place(kind: str, where: str, text: str, source: str) -> tuple[str, str]:
    """Namespace and name. Raises SettingError."""
    if kind == "pods":
        if _NAMESPACE.fullmatch(where):
            return where, ""
    elif kind == "dns":
        if _DNS_NAME.fullmatch(where):
            return "", where
    elif (found := _OBJECT.fullmatch(where)) is not None:
        return found["namespace"], found["name"]
    raise SettingError(source, text, f"has no proper name behind {kind}:; should be {_FORMS}")


def _query(query: str, kind: str, text: str, source: str) -> tuple[str, EngineOptions]:
    """The selector and the options. Raises SettingError."""
    given: dict[str, str] = {}
    known = ("selector",) * (kind == "pods") + ("port", *(option for option in OPTIONS if option != "http-port"))
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if key not in known or not equals or not value:
            raise SettingError(source, text, f"{part!r} is not key=value; keys are {', '.join(known)}")
        if key in given:
            raise SettingError(source, text, f"{key} is given twice")
        given[key] = value
    selector = given.pop("selector", "")
    if len(selector) > SELECTOR_LENGTH_MAX:
        raise SettingError(source, text, f"the selector should have at most {SELECTOR_LENGTH_MAX} characters")
    if "port" in given:
        given["http-port"] = given.pop("port")
    try:
        return selector, EngineOptions.of(given)
    except ValueError as error:
        raise SettingError(source, text, str(error).replace("http-port", "port")) from None
