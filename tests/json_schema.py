"""Values and answers against an OpenAPI document, without the libraries that made it."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx

from tests.running import Client


class Provoked(NamedTuple):
    """A request, and the status that must come. `template`: the path as the document names it; `sent`: for httpx."""

    method: str
    path: str
    template: str
    sent: dict[str, Any]
    status: int


def check_provoked(service: Client, document: dict[str, Any], requests: list[Provoked]) -> None:
    """Each status comes, and is documented, and its body is as described."""
    for method, path, template, sent, status in requests:
        response = service.http.request(method, f"{service.url}{path}", **sent)
        assert response.status_code == status, f"{method} {path} {response.text}"
        check_described(response, document, template)


def check_described(response: httpx.Response, document: dict[str, Any], template: str) -> None:
    """The answer's status is documented for its route, and its body is as described."""
    where = f"{response.request.method} {response.request.url} {response.status_code}"
    described = document["paths"][template][response.request.method.lower()]["responses"]
    assert str(response.status_code) in described, where
    content = described[str(response.status_code)].get("content", {})
    if response.status_code == 204:
        assert (content, response.content) == ({}, b""), where
        return
    media_type = response.headers["content-type"].partition(";")[0]
    assert media_type in content, where
    if media_type != "text/plain":
        assert faults(response.json(), content[media_type]["schema"], document, where) == []


def faults(value: Any, schema: dict[str, Any], document: dict[str, Any], where: str = "$") -> list[str]:
    """What is wrong with a value by a schema; as much of JSON Schema as the document uses."""
    if "$ref" in schema:
        return faults(value, resolved(schema["$ref"], document), document, where)
    if "anyOf" in schema:
        tries = [faults(value, option, document, where) for option in schema["anyOf"]]
        if all(tries):
            return [f"{where}: fits none: {tries}"]
        schema = {keyword: value for keyword, value in schema.items() if keyword != "anyOf"}
    if "oneOf" in schema and (fitting := sum(not faults(value, option, document, where) for option in schema["oneOf"])) != 1:
        return [f"{where}: fits {fitting} of what it should fit one of"]
    if found := [fault for part in schema.get("allOf", []) for fault in faults(value, part, document, where)]:
        return found
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{where}: {value!r} is none of {schema['enum']}"]
    kinds: dict[str, Any] = {
        **{"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
    }
    kind = schema.get("type")
    if isinstance(kind, list):
        return [] if any(isinstance(value, kinds[one]) for one in kind) else [f"{where}: {value!r} is none of {kind}"]
    if kind is not None and (not isinstance(value, kinds[kind]) or (kind != "boolean" and isinstance(value, bool))):
        return [f"{where}: {value!r} is no {kind}"]
    found = []
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found += [f"{where}: {name} is missing" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            # Without a type it is a part of a schema, which says nothing of other properties.
            inner = known.get(name, schema.get("additionalProperties", not known or kind is None))
            if isinstance(inner, dict):
                found += faults(item, inner, document, f"{where}.{name}")
            elif not inner:
                found.append(f"{where}: {name} is not described")
    if isinstance(value, list):
        prefix = schema.get("prefixItems", [])
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{where}: {len(value)} items")
        for number, item in enumerate(value):
            inner = prefix[number] if number < len(prefix) else schema.get("items", {})
            found += faults(item, inner, document, f"{where}[{number}]") if isinstance(inner, dict) else [f"{where}[{number}]: too many"]
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        found.append(f"{where}: {value} is out of range")
    if isinstance(value, str) and not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        found.append(f"{where}: {len(value)} characters")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        found.append(f"{where}: {value!r} does not match {schema['pattern']}")
    return found


def resolved(ref: str, document: dict[str, Any]) -> dict[str, Any]:
    """The schema that a reference names."""
    assert ref.startswith("#/components/schemas/"), ref
    schema: dict[str, Any] = document["components"]["schemas"][ref.rpartition("/")[2]]
    return schema


def every_schema(node: Any) -> Iterator[dict[str, Any]]:
    """All objects of a document, the schemas among them."""
    if isinstance(node, dict):
        yield node
        for inner in node.values():
            yield from every_schema(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from every_schema(inner)
