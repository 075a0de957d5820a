"""What protoc makes of scorer.proto: another reader of the same file, which shares no code with the product."""

import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_tools import protoc

PROTO = Path(__file__).parent.parent / "scorer_api" / "rpc" / "scorer.proto"
TIMEOUT_S = 30.0


def _generate() -> tuple[ModuleType, ModuleType]:
    with tempfile.TemporaryDirectory() as folder:
        assert protoc.main(["protoc", f"-I{PROTO.parent}", f"--python_out={folder}", f"--grpc_python_out={folder}", PROTO.name]) == 0
        sys.path.insert(0, folder)
        try:
            return importlib.import_module("scorer_pb2"), importlib.import_module("scorer_pb2_grpc")
        finally:
            sys.path.remove(folder)


messages, _methods = _generate()


def stub_of(channel: Any) -> Any:
    """Asks over this channel."""
    return _methods.ScorerStub(channel)


def refusal(error: grpc.RpcError) -> tuple[grpc.StatusCode, Any, Any]:
    """Code, Problem and RetryInfo (None where there is none) of a call that failed."""
    details = next(value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin")
    status = status_pb2.Status.FromString(details)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    problem, retry = messages.Problem(), None
    assert status.details[0].Unpack(problem)
    if len(status.details) > 1:
        retry = error_details_pb2.RetryInfo()
        assert status.details[1].Unpack(retry)
    return error.code(), problem, retry
