"""When traces are wanted."""

import pytest

from indexer.tracing.current import active_tracer, current_span, exemplar
from indexer.tracing.environment import is_wanted, make_tracer

HERE = "http://collector:4318"


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": HERE}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": HERE}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": HERE, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": HERE, "OTEL_TRACES_EXPORTER": "console"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": HERE, "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": HERE}, False),
        ({"OTEL_SERVICE_NAME": "mine"}, False),
    ],
)
def test_the_standard_variables_decide(environ: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environ) is wanted


def test_without_them_there_is_no_tracer_and_no_span() -> None:
    assert make_tracer({}) is None
    assert active_tracer() is None
    assert current_span.get() is None
    assert exemplar() is None


def test_without_the_library_the_log_says_what_to_install(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def missing(_: str) -> object:
        raise ModuleNotFoundError("No module named 'opentelemetry'", name="opentelemetry")

    monkeypatch.setattr("indexer.tracing.environment.import_module", missing)
    assert make_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": HERE}) is None
    (record,) = caplog.records
    assert (record.message, "kv-event-indexer[otel]" in record.reason) == ("traces are not sent", True)  # type: ignore[attr-defined]
