"""Requests made from the types of the API, right ones and wrong ones, in JSON and msgpack; and an app that is asked without a socket.

Everything follows from a seed. A body is a tree of values that is made from the type of the request; on the way single values become odd ones.
What is written may have every form that the format has, and is damaged at times.
"""

import json
import random
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from indexer.http.negotiation import JSON, MSGPACK
from scorer_api.api.route_schemas import DoneRequest, RouteRequest
from scorer_api.api.schemas import SOURCES, ScoreRequest

MODELS = ("m", "own", "lora", "alias", "unknown", "")
PODS = ("pod", "other", "", "p" * 300, "pod/ö", "none")
CHAT = {"messages", "tools", "chat_template_kwargs"}


class Raw(bytes):
    """Bytes that are written as they are, in place of a value."""


class Pairs(list[tuple[Any, Any]]):
    """An object whose keys may be anything, and may come twice."""


class Ask(NamedTuple):
    """A request. `body`: None for none."""

    method: str
    path: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Fuzzer:
    """`ask()` makes the next request."""

    def __init__(self, seed: int, pods_path: str = "/v1/pods/") -> None:
        self.random = random.Random(seed)
        self._pods_path = pods_path
        self._odds = 0.0

    def ask(self) -> Ask:
        rng = self.random
        self._odds = rng.choice([0.0, 0.0, 0.02, 0.1, 0.4])
        in_msgpack = rng.random() < 0.55
        route = rng.choices(["score", "route", "explain", "batch", "done", "put", "plain"], [30, 20, 15, 15, 5, 5, 10])[0]
        headers: list[tuple[bytes, bytes]] = []
        match route:
            case "plain":
                return self._plain()
            case "put":
                return Ask(
                    "PUT",
                    self._pods_path.encode() + self._path_part(),
                    [(b"content-type", JSON.encode())],
                    self._encoded(self._spec(), in_msgpack=False),
                )
            case "batch":
                value: Any = self._batch()
            case "done":
                value = self._object(DoneRequest)
            case "route":
                value = self._request(RouteRequest, in_msgpack=in_msgpack)
            case _:
                value = self._request(ScoreRequest, in_msgpack=in_msgpack)
        path = {"batch": "/v1/score/batch", "done": "/v1/route/done"}.get(route, f"/v1/{route}")
        kind = MSGPACK if in_msgpack else JSON
        if rng.random() < 0.02:
            kind = rng.choice([JSON, MSGPACK, "text/plain", "", "application/x-msgpack", f"{JSON}; charset=x", "a" * 300])
        headers.append((b"content-type", kind.encode()))
        if rng.random() < 0.3:
            headers.append((b"accept", rng.choice([JSON, MSGPACK, "*/*", f"{MSGPACK};q=0.5, {JSON};q=x", ";;,,;q=1", "\xff"]).encode("latin-1")))
        return Ask("POST", path.encode(), headers, self._damaged(self._encoded(value, in_msgpack=in_msgpack)))

    # Values

    def _request(self, kind: type, *, in_msgpack: bool) -> Any:
        rng = self.random
        source = rng.choice(SOURCES)
        fields: dict[str, Any] = {}
        for field in inspect.type_info(kind).fields:  # type: ignore[attr-defined]  # a struct's
            name = field.name
            is_wanted = name == "model" or name == source or (name not in SOURCES and rng.random() < 0.12) or rng.random() < self._odds / 4
            if is_wanted:
                fields[name] = self._odd() if rng.random() < self._odds else self._field(name, field.type, in_msgpack=in_msgpack)
        if rng.random() < self._odds / 2:
            fields[self._text()] = self._odd()
        pairs = Pairs(fields.items())
        rng.shuffle(pairs)
        if rng.random() < self._odds / 2:
            pairs.append(rng.choice(pairs))
        return pairs if rng.random() >= self._odds / 10 else self._odd()

    def _field(self, name: str, kind: inspect.Type, *, in_msgpack: bool) -> Any:
        rng = self.random
        match name:
            case "model":
                return rng.choice(MODELS)
            case "token_ids":
                tokens = [rng.choice([0, 1, 127, 128, 255, 2**16, 2**32 - 1, rng.randrange(2**32)]) for _ in range(rng.choice([0, 1, 3, 8, 40]))]
                tokens = list(range(rng.choice([8, 17, 33]))) if rng.random() < 0.3 else tokens
                if in_msgpack and rng.random() < 0.3:
                    return struct.pack(f"<{len(tokens)}I", *tokens) + bytes(rng.choice([0, 0, 0, 1, 3]))
                return [self._maybe(token) for token in tokens]
            case "messages":
                roles = ["user", "assistant", "tool", "system", ""]
                return [self._maybe(self._message(rng.choice(roles))) for _ in range(rng.choice([0, 1, 1, 2, 5]))]
            case "tools":
                function = {"name": self._text(), "parameters": self._tree(3)}
                return [self._maybe({"type": "function", "function": self._maybe(function)})] * rng.choice([0, 1, 2])
            case "chat_template_kwargs":
                return Pairs((self._text(), self._tree(3)) for _ in range(rng.choice([0, 1, 3])))
            case "block_extra_keys":
                return [self._maybe([self._maybe(number), self._maybe(self._extra_keys())]) for number in range(rng.choice([0, 1, 3, 300]))]
            case "pods" | "exclude":
                return [self._maybe(rng.choice(PODS)) for _ in range(rng.choice([0, 1, 3]))]
        return self._of(kind)

    def _message(self, role: str) -> Any:
        rng = self.random
        part = {"type": rng.choice(["text", "image_url", "input_text"]), "text": self._text()}
        content = rng.choice([self._text(), self._text(), [self._maybe(part), part], None])
        call = {"function": self._maybe({"name": "f", "arguments": rng.choice(["{}", "[", "[" * 3_000, "", self._tree(2), "1" * 5_000])})}
        more = {"tool_calls": rng.choice([[self._maybe(call)], [], None, self._odd()])} if rng.random() < 0.3 else {}
        return {"role": self._maybe(role), "content": self._maybe(content), **more}

    def _extra_keys(self) -> list[Any]:
        rng = self.random
        return [rng.choice([self._text(), -1, 2**63, 2**64, ["img", -5], [["x"]], b"abc", {}, True, 1.5, None]) for _ in range(rng.choice([0, 1, 2]))]

    def _batch(self) -> Any:
        rng = self.random
        requests = [self._maybe(self._request(ScoreRequest, in_msgpack=rng.random() < 0.5)) for _ in range(rng.choice([0, 1, 2, 9, 20]))]
        if rng.random() < 0.01:
            requests = requests[:1] * rng.choice([255, 256, 257, 400])
        pairs = Pairs([("requests", self._maybe(requests))])
        if rng.random() < self._odds / 2:
            pairs.append((self._text(), self._odd()))
        return pairs

    def _spec(self) -> Any:
        """Of a pod at an address that is refused, or that nobody listens at."""
        rng = self.random
        fields = {
            "model": rng.choice(MODELS),
            "events": rng.choice(["tcp://192.0.2.1:5557", "tcp://127.0.0.1:1", "tcp://[::1", "ipc://x", "http://x", "", "tcp://x:99999"]),
        }
        for name in (
            "replay",
            "http",
            "rank",
            "ranks",
            "topic",
            "aliases",
            "drops_last_block",
            "offload_block_size",
            "ranks_share_port",
            "prefill_tokens_per_s",
            "snapshot",
            "pod",
            "other",
        ):
            if rng.random() < 0.15:
                fields[name] = self._odd()
        return Pairs((self._maybe(name), self._maybe(value)) for name, value in fields.items())

    def _object(self, kind: type) -> Any:
        return Pairs((self._maybe(field.name), self._maybe(self._of(field.type))) for field in inspect.type_info(kind).fields)  # type: ignore[attr-defined]

    def _of(self, kind: inspect.Type) -> Any:
        """A value of a type, at its edges."""
        rng = self.random
        match kind:
            case inspect.Metadata(type=inner):
                return self._of(inner)
            case inspect.UnionType(types=types):
                return self._of(rng.choice(types))
            case inspect.IntType(ge=ge, le=le):
                low, high = -(2**63) if ge is None else ge, 2**64 - 1 if le is None else le
                return rng.choice([low, high, low - 1, high + 1, 0, 1, 7])
            case inspect.StrType(max_length=length, pattern=pattern):
                return (
                    f"{rng.randrange(2**64):016x}"
                    if pattern
                    else self._text()
                    if length is None
                    else rng.choice([self._text(), "x" * (length + rng.choice([0, 1]))])
                )
            case inspect.ListType(item_type=item):
                return [self._maybe(self._of(item)) for _ in range(rng.choice([0, 1, 3]))]
            case inspect.LiteralType(values=values):
                return rng.choice(values)
            case inspect.BoolType():
                return rng.random() < 0.5
            case inspect.BytesType():
                return rng.randbytes(rng.choice([0, 4, 7, 8, 32]))
            case inspect.NoneType():
                return None
        return self._tree(3)

    def _maybe(self, value: Any) -> Any:
        return self._odd() if self.random.random() < self._odds / 3 else value

    def _text(self) -> str:
        rng = self.random
        texts = ["", "a", "hello", "ö€😀", "\x00", "\ud800", "<s>", "</s>", "x" * 50, "{{ 7 }}", "token_ids", "\u2028", "img", "a\nb", '"},{"']
        return rng.choice(texts)

    def _tree(self, depth: int) -> Any:
        rng = self.random
        if not depth or rng.random() < 0.4:
            return rng.choice([None, True, 0, -1, 2**53, 1.5, self._text(), self._maybe("x")])
        if rng.random() < 0.5:
            return [self._tree(depth - 1) for _ in range(rng.choice([0, 1, 3]))]
        return Pairs((self._maybe(self._text()), self._tree(depth - 1)) for _ in range(rng.choice([0, 1, 3])))

    def _odd(self) -> Any:
        rng = self.random
        odd: list[Callable[[], Any]] = [
            lambda: rng.choice([None, True, False, "", [], {}, b"", 0, -1, 1.5, -0.0, float("nan"), float("inf"), 1e308]),
            lambda: rng.choice([2**31, 2**32, 2**53, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**30, 10**400]),
            lambda: self._text(),
            lambda: rng.randbytes(rng.choice([1, 4, 8, 16])),
            lambda: msgspec.msgpack.Ext(rng.choice([-1, 0, 5, 127, -128]), rng.randbytes(rng.choice([0, 1, 2, 4, 8, 12, 16, 17]))),
            lambda: Pairs(
                [(rng.choice([None, 1, 1.5, True, b"k", (), Pairs(), msgspec.msgpack.Ext(-1, bytes(4)), "k"]), rng.choice([1, "v", []]))]
                * rng.choice([1, 2])
            ),
            lambda: self._nested(rng.choice([10, 200, 600, 2_000, 20_000])),
            lambda: Raw(
                rng.choice(
                    [
                        b"\xc1",
                        b"\xd9\xff",
                        b"\xdd\xff\xff\xff\xff",
                        b"\xdf\xff\xff\xff\xff",
                        b"\xc6\xff\xff\xff\xff",
                        b"NaN",
                        b"01",
                        b"1e999",
                        b"-",
                        b'"\\ud800"',
                        b'"\\u00"',
                        b'"\xff"',
                        b"\xa1\xff",
                        b"//",
                        b"\xef\xbb\xbf",
                        b"1" * 6_000,
                        b"1." + b"0" * 500,
                    ]
                )
            ),
            lambda: self._tree(4),
        ]
        return rng.choice(odd)()

    def _nested(self, depth: int) -> Raw:
        rng = self.random
        return Raw(
            rng.choice(
                [
                    b"[" * depth + b"]" * depth,
                    b'{"a":' * depth + b"1" + b"}" * depth,
                    b"\x91" * depth + b"\x01",
                    b"\x81\xa1a" * depth + b"\x01",
                    b"\x81" * depth + b"\x01" * (depth + 1),
                ]
            )
        )

    # Bytes

    def _encoded(self, value: Any, *, in_msgpack: bool) -> bytes:
        return self._msgpack(value) if in_msgpack else self._json(value)

    def _json(self, value: Any) -> bytes:
        if isinstance(value, Raw):
            return bytes(value)
        if isinstance(value, Pairs | dict):
            pairs = value if isinstance(value, Pairs) else value.items()
            return b"{" + b",".join(self._json(str(key) if isinstance(key, Pairs) else key) + b":" + self._json(inner) for key, inner in pairs) + b"}"
        if isinstance(value, list | tuple):
            return b"[" + b",".join(map(self._json, value)) + b"]"
        if isinstance(value, bytes | msgspec.msgpack.Ext):
            value = repr(value)
        return json.dumps(value, ensure_ascii=self.random.random() < 0.5).encode(errors="surrogatepass")

    def _msgpack(self, value: Any) -> bytes:
        rng = self.random
        match value:
            case Raw():
                return bytes(value)
            case bool() | None:
                return msgspec.msgpack.encode(value)
            case int():
                if not -(2**63) <= value < 2**64:
                    return msgspec.msgpack.encode(float("inf"))
                if value >= 0 and rng.random() < 0.05:
                    return b"\xcf" + struct.pack(">Q", value)
                return msgspec.msgpack.encode(value)
            case float():
                return b"\xca" + struct.pack(">f", 1.5) if rng.random() < 0.1 else msgspec.msgpack.encode(value)
            case str():
                data = value.encode(errors="surrogatepass")
                if rng.random() < 0.05:
                    return rng.choice([b"\xda" + struct.pack(">H", len(data)), b"\xdb" + struct.pack(">I", len(data))]) + data
                return (bytes([0xA0 | len(data)]) if len(data) < 32 else b"\xdb" + struct.pack(">I", len(data))) + data
            case bytes():
                return msgspec.msgpack.encode(value)
            case Pairs() | dict():
                pairs = list(value) if isinstance(value, Pairs) else list(value.items())
                head = bytes([0x80 | len(pairs)]) if len(pairs) < 16 and rng.random() < 0.95 else b"\xdf" + struct.pack(">I", len(pairs))
                return head + b"".join(self._msgpack(key) + self._msgpack(inner) for key, inner in pairs)
            case list() | tuple():
                head = bytes([0x90 | len(value)]) if len(value) < 16 and rng.random() < 0.95 else b"\xdd" + struct.pack(">I", len(value))
                return head + b"".join(map(self._msgpack, value))
        return msgspec.msgpack.encode(value)

    def _damaged(self, body: bytes) -> bytes:
        rng = self.random
        if rng.random() >= self._odds / 2 or not body:
            return body
        at = rng.randrange(len(body))
        return rng.choice(
            [
                body[:at],
                body[:at] + rng.randbytes(1) + body[at + 1 :],
                body[:at] + rng.randbytes(3) + body[at:],
                body + rng.randbytes(2),
                body[at:],
                b"",
                body * 2,
            ]
        )

    def _path_part(self) -> bytes:
        rng = self.random
        return rng.choice([b"pod", b"new", b"a%2Fb", b"%ff", b"%00", b"", b"x" * 300, b"..%2f", "ö".encode(), rng.randbytes(3)])

    def _plain(self) -> Ask:
        rng = self.random
        path = rng.choice(
            [
                b"/v1/pods",
                b"/v1/models",
                b"/healthz",
                b"/readyz",
                b"/ui",
                b"/v1/score",
                b"/nothing",
                b"/v1/pods/" + self._path_part(),
                b"/metrics" if rng.random() < 0.05 else b"/",
            ]
        )
        method = rng.choice(["GET", "HEAD", "POST", "DELETE", "PATCH", "OPTIONS"])
        return Ask(method, path, [(b"accept", self._text().encode(errors="replace"))], self._damaged(b"{}"))
