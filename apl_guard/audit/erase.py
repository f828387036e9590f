"""Erasure: the key of a subject is destroyed, and that it was is recorded. The log stays whole."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apl_guard.audit import disk
from apl_guard.audit.checkpoint import LOG_FILE
from apl_guard.audit.digest_keys import DigestKeys
from apl_guard.audit.durable import DurableLog
from apl_guard.audit.reading import find_decision, read_log
from apl_guard.audit.subjects import SubjectKeys
from apl_guard.errors import InvalidInput

__all__ = ["erase", "reveal"]

_log = logging.getLogger("apl_guard")


def erase(
    folder: Path,
    *,
    subject: str | None = None,
    decision_id: str | None = None,
    witnesses: Sequence[Path] = (),
    keys: Path | None = None,
) -> list[str]:
    """Destroy the key under which the prompts of a subject were recorded.

    Args:
        folder: The log.
        subject: Who asked, as the platform called it.
        decision_id: Instead, one of the subject's decisions; all others of the subject that were recorded under the
            same digest key are erased with it.
        witnesses: Folders that receive the checkpoints.
        keys: Folder of the log's keys, where it is not inside the log.

    Returns:
        The ids of the keys that are gone: one for each digest key under which the subject was recorded.

    Raises:
        InvalidInput: There is no such decision, or nothing to erase.
        AuditUnavailable: The erasure cannot be recorded. The key is destroyed all the same.
        OSError: The key cannot be destroyed.
    """
    found = DigestKeys.of_log(folder, keys)
    disk.check_system()
    disk.check_owner(folder / LOG_FILE)  # before anything is destroyed that could then not be recorded
    if subject is not None:
        names = [SubjectKeys(found.folder, key).name_of(subject) for key in found.kept().values()]
    else:
        fields = _with_text(folder, decision_id or "")
        if fields is None:
            raise InvalidInput("its record holds no text", where=f"decision {decision_id}")
        names = [fields["subject"]]
    subjects = SubjectKeys(found.folder, found.in_use)
    destroyed = {name: kid for name in names if (kid := subjects.destroy(name)) is not None}
    rotations = read_log(folder, containing=b'"event":"audit.rotation"') if subject is not None else ()
    lost = ", ".join(found.missing(each.fields for each in rotations))
    rest = f"what was recorded under digest key {lost}, which is not kept, is reached only by a decision (--decision)"
    if not destroyed:
        more = f"; {rest}" if lost else ""
        raise InvalidInput(f"no key of it was found, so nothing is erased{more}", where="subject")
    if lost:
        _log.warning("%s", rest)
    with DurableLog(folder, witnesses, keys) as log:
        for name, kid in destroyed.items():
            log.append("audit.erasure", {"subject": name, "kid": kid}, decision=None)
    return list(destroyed.values())


def reveal(
    folder: Path, decision_id: str, *, witnesses: Sequence[Path] = (), keys: Path | None = None
) -> dict[str, list[str]] | None:
    """The texts of a decision, where they were recorded and not erased. That somebody read them is recorded first.

    Raises:
        InvalidInput: There is no such decision, or they were erased and their key came back.
        AuditUnavailable: That they are read cannot be recorded, or the key does not fit.
    """
    fields = _with_text(folder, decision_id)
    if fields is None:
        return None
    with DurableLog(folder, witnesses, keys) as log:
        log.append("audit.access", {"decision_id": decision_id, "kid": fields["enc"]["kid"]}, decision=decision_id)
    found = DigestKeys.of_log(folder, keys)
    texts: dict[str, list[str]] | None = SubjectKeys(found.folder, found.in_use).decrypt(decision_id, fields)
    if texts is not None and (erased := _erased(folder, fields["enc"]["kid"])) is not None:
        raise InvalidInput(
            f"its text was erased at {erased}, and the key is back, as from a backup; destroy it again: "
            f"apl-guard audit erase {folder} --decision {decision_id}",
            where=f"decision {decision_id}",
        )
    return texts


def _erased(folder: Path, kid: str) -> str | None:
    """When a key was destroyed, as the log says."""
    erasures = (each.fields for each in read_log(folder, containing=b'"event":"audit.erasure"'))
    return next((fields["timestamp"] for fields in erasures if fields.get("kid") == kid), None)


def _with_text(folder: Path, decision_id: str) -> Mapping[str, Any] | None:
    """The record of a decision, if texts are recorded there."""
    return next((each.fields for each in find_decision(folder, decision_id) if "enc" in each.fields), None)
