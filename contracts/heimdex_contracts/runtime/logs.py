"""Logging: one JSON object per line on stderr, for this project's logs and for those of the libraries."""

import json
import logging
import sys
from collections.abc import Mapping
from typing import Any, cast

import msgspec
import structlog

Logger = structlog.typing.FilteringBoundLogger

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def _to_json(value: Mapping[str, Any], **_: Any) -> str:
    try:
        return msgspec.json.encode(value, enc_hook=repr).decode()
    except (TypeError, ValueError, RecursionError):
        # The entry has a lone surrogate or a key that is not text: the line must still be written.
        return json.dumps({str(key): entry for key, entry in value.items()}, default=repr)


def configure(level: str, service: str) -> Logger:
    """Configure structlog, and route the standard library's logging through the same renderer.

    level: one of debug, info, warning, error. Libraries log at warning or above. Returns a logger bound to `service`.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_to_json)],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_to_json),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(_LEVELS[level], logging.WARNING))
    logging.captureWarnings(True)
    return cast("Logger", structlog.get_logger().bind(service=service))
