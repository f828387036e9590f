"""The platform's own logging, and whether it drops what a log sends there."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import structlog
from structlog.typing import Processor

__all__ = ["platform_logger", "warn_if_dropped"]

_RECORDS = logging.getLogger("apl_guard.audit")
_log = logging.getLogger("apl_guard")
_JSON_LINES: list[Processor] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.JSONRenderer(sort_keys=True),
]
_STANDARD = structlog.wrap_logger(_RECORDS, processors=_JSON_LINES, wrapper_class=structlog.BoundLogger)


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
    is_dropped = _is_dropped_by(logger)
    if is_dropped:
        # A configuration that disables the loggers that it does not name leaves the root.
        (logging.getLogger() if _log.disabled else _log).warning(
            "records are dropped: they have no folder (audit=), and the platform's logging does not pass on what "
            "'apl_guard.audit' says at level info; look at its level, those of the handlers, and whether it is disabled"
        )
    return is_dropped


def _is_dropped_by(logger: Any) -> bool:
    """Whether a logger is known to drop level info. One that cannot be asked is believed."""
    bound: Any = _RECORDS if logger is _STANDARD else logger.bind() if hasattr(logger, "bind") else logger
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
