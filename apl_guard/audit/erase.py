"""Erasure: the key of a subject is destroyed, and that it was is recorded. The log stays whole."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apl_guard.audit import disk
from apl_guard.audit.checkpoint import LOG_FILE
from apl_guard.audit.digest_keys import DigestKeys
from apl_guard.audit.durable import DurableLog
from apl_guard.audit.reading import digest_keys_named, find_decision, read_log
from apl_guard.audit.subjects import SubjectKeys
from apl_guard.errors import InvalidInput

__all__ = ["erase", "reveal", "reveal_subject"]

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
        InvalidInput: There is no such decision, or nothing to erase, or the keys are those of another log.
        AuditUnavailable: The erasure cannot be recorded. The key is destroyed all the same.
        OSError: The key cannot be destroyed.
    """
    found = DigestKeys.of_log(folder, keys)
    disk.check_system()
    disk.check_owner(folder / LOG_FILE)  # before anything is destroyed that could then not be recorded
    lost = None
    if subject is not None:
        named = digest_keys_named(folder)
        found.check_are_of(named)  # or the subject of another log would lose its key
        names, lost = _names(found, subject), _lost(found, named)
    else:
        fields = _with_text(folder, decision_id or "")
        if fields is None:
            raise InvalidInput("its record holds no text", where=f"decision {decision_id}")
        names = [fields["subject"]]
    subjects = SubjectKeys(found.folder, found.in_use)
    destroyed = {name: kid for name in names if (kid := subjects.destroy(name)) is not None}
    if not destroyed:
        more = f"; {lost}" if lost else ""
        raise InvalidInput(
            "no key of it was found, so nothing is erased: its prompts were not kept as text, or they are erased "
            f"already, or it is called otherwise{more}",
            where="subject",
        )
    if lost:
        _log.warning("%s", lost)
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
    found = [] if fields is None else _read(folder, [fields], witnesses, keys)
    return found[0][1] if found else None


def reveal_subject(
    folder: Path, subject: str, *, witnesses: Sequence[Path] = (), keys: Path | None = None
) -> list[tuple[Mapping[str, Any], dict[str, list[str]]]]:
    """The records of all decisions of a subject whose texts were recorded and not erased, each with its texts.

    Raises:
        InvalidInput: As for `reveal`.
        AuditUnavailable: As for `reveal`.
    """
    found = DigestKeys.of_log(folder, keys)
    names = _names(found, subject)
    records = (each.fields for each in read_log(folder, containing=b'"enc":'))
    read = _read(folder, [r for r in records if r.get("subject") in names and "enc" in r], witnesses, keys)
    if lost := _lost(found, digest_keys_named(folder)):
        _log.warning("%s", lost)
    return sorted(read, key=lambda each: str(each[0]["timestamp"]))


def _read(
    folder: Path, records: Sequence[Mapping[str, Any]], witnesses: Sequence[Path], keys: Path | None
) -> list[tuple[Mapping[str, Any], dict[str, list[str]]]]:
    """Records whose text can be read, with it."""
    if not records:
        return []
    with DurableLog(folder, witnesses, keys) as log:
        for fields in records:
            id = fields["decision_id"]
            log.append("audit.access", {"decision_id": id, "kid": fields["enc"]["kid"]}, decision=id)
    found = DigestKeys.of_log(folder, keys)
    subjects = SubjectKeys(found.folder, found.in_use)
    erasures = (each.fields for each in read_log(folder, containing=b'"event":"audit.erasure"'))
    erased = {fields.get("kid"): fields["timestamp"] for fields in erasures}
    read = [(r, texts) for r in records if (texts := subjects.decrypt(r["decision_id"], r)) is not None]
    for fields, _ in read:
        if (kid := fields["enc"]["kid"]) in erased:
            raise InvalidInput(
                f"its text was erased at {erased[kid]}, and the key is back, as from a backup; destroy it again: "
                f"apl-guard audit erase {folder} --decision {fields['decision_id']}",
                where=f"decision {fields['decision_id']}",
            )
    return read


def _names(found: DigestKeys, subject: str) -> list[str]:
    """What a subject is called in records, under each digest key that is kept."""
    return [SubjectKeys(found.folder, key).name_of(subject) for key in found.kept().values()]


def _lost(found: DigestKeys, named: Iterable[str]) -> str | None:
    """What of a subject cannot be found by its name, of what stands in the log under the digest keys that it names."""
    if not (lost := found.missing(named)):
        return None
    return f"what was recorded under digest key {', '.join(lost)}, which is not kept, is reached only by a decision"


def _with_text(folder: Path, decision_id: str) -> Mapping[str, Any] | None:
    """The record of a decision, if texts are recorded there."""
    records = (each.fields for each in find_decision(folder, decision_id))
    return next((fields for fields in records if {"enc", "subject"} <= fields.keys()), None)
