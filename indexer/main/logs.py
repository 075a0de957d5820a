"""Log lines: a constant message, and data in fields."""

import asyncio
import logging
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec

from indexer.masking import masked

# Attributes of every record; all others are fields of ours.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD and value is not None}


def without_secrets(text: str) -> str:
    """Text of libraries without passwords in URLs, and without the arguments that a Redis without AUTH repeats in its error."""
    return "\n".join(masked(line.partition(", with args beginning with:")[0]) for line in text.splitlines())


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO stream changed pod=a rank=0 trust=live`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={_shown(value)}" for key, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line

    def formatException(self, ei: Any) -> str:
        """An error may repeat what was sent, including the password of an AUTH."""
        return without_secrets(super().formatException(ei))


def _shown(value: Any) -> str:
    text = str(value)
    return repr(text) if not text or any(char.isspace() or char in "\"'=" for char in text) else text


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(), **_fields(record)}
        if record.exc_info:
            line["exception"] = without_secrets(self.formatException(record.exc_info))
        return msgspec.json.encode(line, enc_hook=str).decode()


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


def name_worker(number: int) -> None:
    """Each line of this process has the field `worker` from now on."""
    make = logging.getLogRecordFactory()

    def make_named(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        record.worker = number
        return record

    logging.setLogRecordFactory(make_named)


def configure(log_format: str, log_level: str) -> None:
    """Send all logs to stderr in this form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=log_level.upper(), handlers=[handler], force=True)
    # These libraries log every request, connection and start; only their warnings are kept.
    # A request that is cancelled at the end of the stop is no error of the app.
    logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
    for name in ("uvicorn", "httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
