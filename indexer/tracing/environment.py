"""Whether traces are wanted, by the standard variables of OpenTelemetry, and the tracer that sends them."""

import logging
from collections.abc import Mapping
from importlib import import_module

from indexer.tracing.current import Tracer

log = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def is_wanted(environ: Mapping[str, str]) -> bool:
    """An endpoint is named, or the exporter; and nothing switches traces off."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    return exporter == "otlp" or (exporter == "" and any(environ.get(name) for name in ENDPOINTS))


def make_tracer(environ: Mapping[str, str]) -> Tracer | None:
    """None where no traces are wanted, or cannot be sent, which the log says. The variables may be meant for others, so nothing stops the start."""
    if not is_wanted(environ):
        return None
    try:
        tracer: Tracer = import_module("indexer.tracing.otel").OtelTracer(environ)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("indexer"):
            raise
        log.warning("traces are not sent", extra={"reason": "they need OpenTelemetry: pip install 'kv-event-indexer[otel]'"})
        return None
    except Exception as error:  # noqa: BLE001 - whatever the library makes of a variable, the service does without traces
        log.warning("traces are not sent", extra={"reason": str(error)})
        return None
    return tracer
