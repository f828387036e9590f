"""Waiting for a run of ComfyUI, over `/history` and `/queue`. Neither draws anything, so both may be asked again."""

from __future__ import annotations

from time import monotonic, sleep
from typing import Any

from apl_guard.adapters.remote.http_client import (
    HttpClient,
    RemoteAnswerInvalid,
    RemoteError,
    RemoteRefused,
    RemoteTimeout,
)

__all__ = ["wait_for"]

_SECONDS_BETWEEN_QUESTIONS = 0.25
_SECONDS_BETWEEN_QUEUES = 5.0
_OUT_FOR_A_MOMENT = (502, 503, 504)
"""What a proxy says while the server behind it starts again."""


def wait_for(http: HttpClient, run: str, deadline: float) -> dict[str, Any]:
    """Wait until a run has ended well.

    Args:
        http: Where the server is.
        run: What the server calls the run.
        deadline: Until when to wait, by `time.monotonic`. A connection that is lost meanwhile is made again.

    Returns:
        Its entry in the history.

    Raises:
        RemoteRefused: It failed, or the server does not say.
        RemoteAnswerInvalid: An answer is not of the documented shape.
        RemoteTimeout: It did not end in time.
        RemoteError: The server does not know it any more.
    """
    lost: RemoteError | None = None
    look_after = monotonic() + _SECONDS_BETWEEN_QUEUES
    while monotonic() < deadline:
        is_missing = False
        try:
            entry = _ended(http, run, deadline)
            if entry is None and (lost is not None or monotonic() >= look_after):
                look_after = monotonic() + _SECONDS_BETWEEN_QUEUES
                if not _may_be_queued(http, run, deadline):
                    entry, is_missing = _ended(http, run, deadline), True  # it may have ended between the questions
            lost = None
        except RemoteAnswerInvalid:
            raise
        except RemoteError as error:
            if isinstance(error, RemoteRefused) and error.status not in _OUT_FOR_A_MOMENT:
                raise
            lost = error
        else:
            if entry is not None:
                return entry
            if is_missing:
                raise RemoteError(
                    f"{http.base_url}: knows the run no more, as where it was started again or its queue was cleared; "
                    "it may have drawn"
                )
        sleep(max(0.0, min(_SECONDS_BETWEEN_QUESTIONS, deadline - monotonic())))
    raise RemoteTimeout(f"{http.base_url}: the run did not end in time; it may still draw") from lost


def _ended(http: HttpClient, run: str, deadline: float) -> dict[str, Any] | None:
    """The entry of a run that has ended well; None where it has not ended."""
    history = http.get(f"/history/{run}", limit=deadline - monotonic())
    if not isinstance(history, dict):
        raise RemoteAnswerInvalid("the history is not of the documented shape")
    entry = history.get(run)
    if not isinstance(entry, dict):
        return None
    status = entry.get("status") or {}
    if not isinstance(status, dict) or status.get("status_str") == "error":
        detail = status.get("messages") if isinstance(status, dict) else None
        raise RemoteRefused(f"{http.base_url}: the run failed", status=200, detail=detail)
    return entry


def _may_be_queued(http: HttpClient, run: str, deadline: float) -> bool:
    """Whether a run waits or is drawn; also where the server, or a proxy before it, does not say."""
    try:
        queue = http.get("/queue", limit=deadline - monotonic())
        return any(entry[1] == run for entry in (*queue["queue_running"], *queue["queue_pending"]))
    except (RemoteRefused, RemoteAnswerInvalid, KeyError, TypeError, IndexError):
        return True
