"""The platform's own logging, and whether it drops what a log sends there."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import structlog
from structlog.typing import Processor

from apl_guard.errors import InvalidInput

__all__ = ["as_structlog", "platform_logger", "warn_if_dropped"]

_RECORDS = logging.getLogger("apl_guard.audit")
_log = logging.getLogger("apl_guard")
_JSON_LINES: list[Processor] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.JSONRenderer(sort_keys=True),
]


def as_structlog(logger: Any) -> Any:
    """A logger that takes records as structlog's do; one of Python's logging takes each as a line of JSON.

    Raises:
        InvalidInput: It is no logger.
    """
    if isinstance(logger, logging.Logger | logging.LoggerAdapter):
        return structlog.wrap_logger(logger, processors=_JSON_LINES, wrapper_class=structlog.BoundLogger)
    if not callable(getattr(logger, "info", None)):
        raise InvalidInput(
            f"found {type(logger).__name__}; expected a logger of structlog or of Python's logging", where="logger"
        )
    return logger


_STANDARD = as_structlog(_RECORDS)


def platform_logger() -> Any:
    """The platform's structlog, or where that is not configured, Python's logging.

    Asked for anew with each record: one that structlog cached would go on with settings that the platform has replaced
    since.
    """
    return structlog.get_logger("apl_guard.audit") if structlog.is_configured() else _STANDARD


def warn_if_dropped(logger: Any) -> bool:
    """Say where records are lost, if that can be known.

    Returns:
        Whether they are.
    """
    bound: Any = logger.bind() if hasattr(logger, "bind") else logger
    if type(bound) is structlog.BoundLogger:  # which cannot be asked itself
        bound = bound._logger
    is_dropped = _is_dropped_by(bound)
    if is_dropped:
        # A configuration that disables the loggers that it does not name leaves the root.
        (logging.getLogger() if _log.disabled else _log).warning(
            "records are dropped: they have no folder (audit=), and the platform's logging does not pass on what "
            "'%s' says at level info; look at its level, those of the handlers, and whether it is disabled",
            getattr(bound, "name", _RECORDS.name),
        )
    return is_dropped


def _is_dropped_by(bound: Any) -> bool:
    """Whether a logger is known to drop level info. One that cannot be asked is believed."""
    with suppress(AttributeError):  # it asks a logger that does not know
        # Asked of the type: others take any name for a level to log at.
        if hasattr(type(bound), "isEnabledFor"):
            return not (bound.isEnabledFor(logging.INFO) and _arrives(logging.getLogger(bound.name)))
        if hasattr(type(bound), "is_enabled_for"):
            return not bound.is_enabled_for(logging.INFO)
    return False


def _arrives(logger: logging.Logger | None) -> bool:
    """Whether any handler that it reaches takes level info. The one that Python uses where there is none does not."""
    while logger is not None:
        if any(h.level <= logging.INFO and not isinstance(h, logging.NullHandler) for h in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False
