"""The messages of scorer.proto: numbers of fields and methods, as clients have them compiled in."""

from scorer_api.rpc.schema import SCHEMA
from tests.contract.snapshots import check


def test_the_messages_of_the_scorer() -> None:
    methods = {name: f"{method.request} -> {method.answer}" for name, method in SCHEMA.methods.items()}
    messages = {
        name: {str(field.number): f"{field.label} {field.kind} {field.name}".strip() for field in fields} for name, fields in SCHEMA.messages.items()
    }
    check("grpc", {"service": SCHEMA.service, "methods": methods, "messages": messages})
