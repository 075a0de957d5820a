"""Traces of requests and of batches, sent where the standard variables of OpenTelemetry say. Only `otel` imports it."""
