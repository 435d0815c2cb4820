"""One log: this project's events and the standard library's records, a line each, to stderr.

What belongs to a task is in its own log as well, see ``analysis/tasklog.py``.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import msgspec
import structlog

from cuckoo_api.analysis.tasklog import record


def configure_logs(*, debug: bool = False, stream: TextIO | None = None) -> None:
    """Set the process's logging up: for people on a terminal, else JSON."""
    stream = stream or sys.stderr
    level = logging.DEBUG if debug else logging.INFO
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        record,
    ]
    structlog.configure(
        processors=[*shared, *_renderers(stream)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(stream),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level if debug else logging.WARNING)


def _renderers(stream: TextIO) -> list[structlog.typing.Processor]:
    if stream.isatty():
        # plain: the other formatter shows the locals, in which secrets may be, and takes a second
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    return [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(serializer=_dumps),
    ]


def _dumps(event: Any, **_kwargs: Any) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=repr).decode()
    except UnicodeEncodeError:  # something quotes what is no text
        text = {k: repr(v) if isinstance(v, str) else v for k, v in event.items()}
        return msgspec.json.encode(text, enc_hook=repr).decode()
