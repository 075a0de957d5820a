"""scorer.proto as the service reads it, beside what protoc reads in it."""

import pytest
from google.protobuf.descriptor import FieldDescriptor

from scorer_api.gateway.health import SCORER
from scorer_api.rpc.schema import SCHEMA, Field, read_schema
from tests.scorer_stub import messages

KINDS = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_FIXED32: "fixed32",
    FieldDescriptor.TYPE_FIXED64: "fixed64",
}


def field_of(found: FieldDescriptor) -> Field:
    kind = found.message_type.name if found.message_type else KINDS[found.type]
    if found.message_type and found.message_type.GetOptions().map_entry:
        value = found.message_type.fields_by_name["value"]
        return Field(found.name, found.number, value.message_type.name if value.message_type else KINDS[value.type], "map")
    if found.is_repeated:
        return Field(found.name, found.number, kind, "repeated")
    if found.containing_oneof is None:
        return Field(found.name, found.number, kind, "")
    # What is optional is in a oneof that protoc makes up.
    return Field(found.name, found.number, kind, "optional" if found.containing_oneof.name.startswith("_") else "oneof")


def test_it_is_read_as_protoc_reads_it() -> None:
    file = messages.DESCRIPTOR
    assert SCHEMA.messages == {name: tuple(map(field_of, message.fields)) for name, message in file.message_types_by_name.items()}
    service = file.services_by_name["Scorer"]
    assert (SCHEMA.package, SCHEMA.service) == (file.package, service.full_name)
    assert SCHEMA.service == SCORER
    assert {name: (method.request, method.answer) for name, method in SCHEMA.methods.items()} == {
        method.name: (method.input_type.name, method.output_type.name) for method in service.methods
    }
    assert SCHEMA.path("Score") == "/kv_indexer.v1.Scorer/Score"


def test_the_requests_share_their_numbers() -> None:
    score, route = SCHEMA.messages["ScoreRequest"], SCHEMA.messages["RouteRequest"]
    assert route[: len(score)] == score


@pytest.mark.parametrize(
    ("line", "why"), [("enum E { A = 0; }", "a package"), ("package p; service S {} message M { sint32 = 1; }", "M: 'sint32 = 1'")]
)
def test_what_is_not_read_is_refused(line: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_schema(line)
