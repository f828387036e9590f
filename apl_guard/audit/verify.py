"""Whether a log is what was written: its records, its checkpoints, and the copies that witnesses hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import sleep

from apl_guard.audit.chain import Chain, read_chain, read_identity, read_keys
from apl_guard.audit.checkpoint import LOG_FILE, Identity, key_file
from apl_guard.audit.checkpoint_file import CheckpointFile
from apl_guard.audit.folder import SEGMENTS
from apl_guard.audit.report import Report, Verdict
from apl_guard.audit.verify_rows import check_rows
from apl_guard.audit.witness import CHECKPOINTS
from apl_guard.errors import InvalidInput

__all__ = ["Verdict", "verify_log"]

_LOOKS = 5
_LOOK_AGAIN_SECONDS = 0.02
"""A line at the end of the checkpoints that is half there for longer than five of these was cut off."""


def verify_log(folder: Path, witnesses: Sequence[Path] = (), public_key: str | None = None) -> Report:
    """Check everything about a log that can be checked. It may be in use meanwhile.

    Args:
        folder: The log.
        witnesses: Folders that received its checkpoints.
        public_key: Its public key, in hex, from where nobody could change it.

    Raises:
        InvalidInput: The folder holds no log.
        OSError: A file cannot be read.
    """
    report = Report()
    # In this order each of them is ahead of the one read before, even while the log is written.
    copies = _copies(folder, witnesses, report)
    identity = _identify(folder, copies, public_key, report)
    if identity is None:
        return _judge(report, has_witness=bool(copies))
    report.log, report.public_key = identity.log, identity.root
    all_copies, copies = copies, [copy for copy in copies if copy.name == identity.log]
    if public_key is None and copies and (others := len(all_copies) - len(copies)):
        report.notes.append(
            f"the witnesses keep {others} other logs, too, so this may not be the one that you expect; name its key "
            "with --public-key"
        )
    if not (folder / SEGMENTS).is_dir():
        report.findings.append(
            f"{SEGMENTS}: there is no such folder; if this is a witness, verify the log and name this with --witness"
        )
    chain, witnessed = _chain(folder, copies, identity, report)
    report.checkpoints = chain.count
    report.newest_checkpoint = chain.newest.timestamp if chain.newest is not None else None
    _note_clock(chain, report)
    check_rows(folder / SEGMENTS, identity.log, chain, witnessed, report)
    return _judge(report, has_witness=witnessed > 0)


def _judge(report: Report, *, has_witness: bool) -> Report:
    if report.findings:
        report.verdict = Verdict.TAMPERED
    elif report.torn:
        report.verdict = Verdict.TORN
    elif not has_witness:
        report.verdict = Verdict.UNVERIFIABLE
    return report


def _copies(folder: Path, witnesses: Sequence[Path], report: Report) -> list[Path]:
    """The folders in which the witnesses keep what they have received."""
    found = []
    for witness in witnesses:
        if not witness.is_dir():
            raise InvalidInput("there is no such folder", where=witness)
        logs = sorted(entry for entry in witness.iterdir() if (entry / LOG_FILE).exists())
        if not logs:
            above = f"; did you mean {witness.parent}?" if (witness / LOG_FILE).exists() else ""
            report.notes.append(f"{witness} holds no checkpoints{above}")
        found += logs
    is_begun = (folder / CHECKPOINTS).exists() or ((folder / SEGMENTS).is_dir() and any((folder / SEGMENTS).iterdir()))
    if not found and not is_begun and not (folder / LOG_FILE).exists():
        raise InvalidInput("holds no audit log; expected log.json and segments", where=folder)
    if not folder.is_dir():
        raise InvalidInput("there is no such folder", where=folder)
    return found


def _identify(folder: Path, copies: list[Path], public_key: str | None, report: Report) -> Identity | None:
    try:
        identity = read_identity(folder)
    except (OSError, ValueError) as error:
        report.findings.append(f"log.json: {error if isinstance(error, ValueError) else error.strerror}")
        return _known(copies[0], report) if len(copies) == 1 else None
    if public_key is not None and public_key != identity.root:
        report.findings.append(f"log.json: its public key is {identity.root}, expected {public_key}")
    if copies and identity.log not in {copy.name for copy in copies}:
        report.findings.append(
            f"log.json: the witness knows no log {identity.log}, so one of them belongs to something else"
        )
    for copy in copies:
        if copy.name == identity.log and (known := _known(copy, report)) not in {identity, None}:
            report.findings.append("log.json: the witness knows this log by another public key")
            return known
    return identity


def _known(copy: Path, report: Report) -> Identity | None:
    try:
        return read_identity(copy)
    except ValueError as error:
        report.findings.append(f"{copy / 'log.json'}: {error}")
        return None


def _is_damaged(copy: Path, generation: int, epochs: int, root: str) -> bool:
    """Whether the public keys that a witness holds are others. It may not have them yet."""
    try:
        return (copy / key_file(generation)).exists() and read_keys([copy], generation, epochs, root) is None
    except OSError:
        return True


def _chain(folder: Path, copies: list[Path], identity: Identity, report: Report) -> tuple[Chain, int]:
    """The checkpoints that hold, and how many of them a witness has."""

    def keys_of(generation: int, root: str) -> list[bytes] | None:
        ours = read_keys([folder], generation, identity.epochs, root)
        if ours is None:
            known = read_keys(copies, generation, identity.epochs, root)
            report.findings.append(
                f"the public keys of generation {generation} are missing or changed"
                + (f"; the witness has them: {key_file(generation)}" if known is not None else "")
            )
            return known
        report.notes += [
            f"{copy / key_file(generation)} is damaged; put the log's own in its place: {folder / key_file(generation)}"
            for copy in copies
            if copy.name == identity.log and _is_damaged(copy, generation, identity.epochs, root)
        ]
        return ours

    witnessed = {copy: CheckpointFile.look_at(copy) for copy in copies}
    lines = CheckpointFile.look_at(folder)
    for _ in range(_LOOKS):
        if not lines.has_rest:
            break
        sleep(_LOOK_AGAIN_SECONDS)  # it may be in the middle of being written
        lines = CheckpointFile.look_at(folder)
    contrary: list[CheckpointFile] = []
    report.notes += [f"{copy} holds no checkpoints" for copy, kept in witnessed.items() if not kept.end]
    for copy, kept in witnessed.items():  # each of them: one that was taken over may agree with what was forged
        at = lines.first_that_differs(kept)
        if at is not None:
            here = "differs from" if at < lines.count() else "is missing, it is at"
            report.findings.append(f"checkpoint {at} {here} the witness {copy.parent}")
            contrary.append(kept)
    if contrary:
        lines = max(contrary, key=lambda kept: kept.end)
    elif lines.has_rest:
        report.torn.append(f"checkpoint {lines.count()} is cut off")
    chain = read_chain(lines, identity, keys_of)
    if chain.problem is not None:
        report.findings.append(chain.problem)
    return chain, max((kept.count() for kept in witnessed.values()), default=0)


def _note_clock(chain: Chain, report: Report) -> None:
    """Say where the clock was set back. Nothing rests on it, but whoever asks by time has to know."""
    back = chain.set_back
    if back:
        before, after = back[0]
        report.notes.append(
            f"the clock was set back {len(back)} times, first from {before} to {after.timestamp} before "
            f"checkpoint {after.number}; the order of records does not rest on it"
        )
