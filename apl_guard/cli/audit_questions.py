"""`apl-guard audit query | tail | stats | policies | export | reindex`: what is in the log."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from apl_guard.cli.audit_proofs import Keys
from apl_guard.cli.audit_verify import Folder, Json
from apl_guard.errors import InvalidInput, StorageFailed

__all__ = ["export", "policies", "query", "reindex", "stats", "tail"]

IndexFile = Annotated[
    Path | None, typer.Option("--index", help="The index.", show_default="index.sqlite in the log's folder")
]
Since = Annotated[str | None, typer.Option(help="From here on: 2026-11-01, 2026-11-01T12:00Z, or 90m, 24h, 7d ago.")]
Until = Annotated[str | None, typer.Option(help="Up to here, in the same forms.")]
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def query(
    folder: Folder,
    since: Since = None,
    until: Until = None,
    action: Annotated[str | None, typer.Option(help="What the policy said: allow, anonymize, rewrite, block.")] = None,
    result: Annotated[str | None, typer.Option(help="How calls ended: passed, blocked, invalid, failed, …")] = None,
    policy: Annotated[str | None, typer.Option(help="Name of the policy.")] = None,
    tenant: Annotated[str | None, typer.Option(help="For whom the call was made.")] = None,
    decision: Annotated[str | None, typer.Option(help="Id of a decision.")] = None,
    event: Annotated[str | None, typer.Option(help="Such as guard.decision or policy.reloaded.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Calls with this prompt, or one that looks like it; - reads it."),
    ] = None,
    subject: Annotated[str | None, typer.Option(help="About this subject, as your platform calls it.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE; may be repeated.")] = None,
    group_by: Annotated[list[str] | None, typer.Option(help="Count by this column; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many lines.")] = 100,
    index: IndexFile = None,
    keys: Keys = None,
    as_json: Json = False,
) -> None:
    """Ask the log a question, through an index that is brought up to date first.

    Records hold keyed digests of prompts and subjects. With --prompt or --subject, those of every digest key that
    is kept are looked for.

    Example: apl-guard audit query /var/log/apl-guard --since 7d --action block --group-by policy
    """
    from apl_guard.audit.index import Index, Question

    conditions: dict[str, str | int | float] = {}
    named = {"action": action, "result": result, "policy": policy, "tenant": tenant, "decision_id": decision}
    for name, value in {**named, "event": event}.items():
        if value is not None:
            conditions[name] = value
    for each in where or []:
        name, equals, value = each.partition("=")
        if not equals:
            raise InvalidInput(f"found {each!r}; expected COLUMN=VALUE", where="--where")
        conditions[name] = value
    digests = _digests(folder, keys, prompt, subject) if prompt is not None or subject is not None else None
    question = Question(conditions, _moment(since), _moment(until), group_by or (), limit, digests)
    with Index(folder, index) as opened:
        opened.update()
        found = opened.ask(question)
    for row in found:
        typer.echo(json.dumps(row) if as_json else _line(row) if not group_by else _counted(row))
    if not found and not as_json:
        typer.echo("nothing found")


def tail(
    folder: Folder,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written.")] = False,
    index: IndexFile = None,
    as_json: Json = False,
) -> None:
    """Show the newest records.

    Example: apl-guard audit tail /var/log/apl-guard -f
    """
    from apl_guard.audit.index import Index, Question

    shown: set[tuple[str, int]] = set()
    with Index(folder, index) as opened:
        while True:
            opened.update()
            for row in reversed(opened.ask(Question({}, limit=lines if not shown else 1000))):
                place = (row["writer"], row["seq"])
                if place not in shown:
                    shown.add(place)
                    typer.echo(json.dumps(row) if as_json else _line(row))
            if not follow:
                return
            sys.stdout.flush()
            time.sleep(0.5)


def stats(
    folder: Folder, since: Since = None, until: Until = None, index: IndexFile = None, as_json: Json = False
) -> None:
    """Count decisions, outcomes and what is missing.

    Example: apl-guard audit stats /var/log/apl-guard --since 30d
    """
    from apl_guard.audit.index import Index, Question

    with Index(folder, index) as opened:
        opened.update()

        def count(name: str, **conditions: str | int | float) -> dict[str, int]:
            rows = opened.ask(Question(conditions, _moment(since), _moment(until), (name,), 1000))
            return {str(row[name]): row["count"] for row in rows}

        found = {
            "events": count("event"),
            "actions": count("action", event="guard.decision"),
            "policies": count("policy", event="guard.decision"),
            "results": count("result", event="guard.outcome"),
        }
    found["open"] = {
        "decisions without outcome": found["events"].get("guard.decision", 0) - found["events"].get("guard.outcome", 0)
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, counts in found.items():
        typer.echo(name)
        for value, number in counts.items():
            typer.echo(f"  {number:>10}  {_plain(value)}")


def policies(
    folder: Folder,
    at: Annotated[str | None, typer.Option(help="Only what was in force then: 2026-11-01T12:00Z, or 24h ago.")] = None,
    as_json: Json = False,
) -> None:
    """Show which policy was in force when: from the start of a guard, from reload to reload, to the end.

    Prove it to others: apl-guard audit prove LOG GUARD, with the id of the guard that stands here.

    Example: apl-guard audit policies /var/log/apl-guard --at 2026-11-01T12:00Z
    """
    from apl_guard.audit.periods import periods

    moment = _moment(at, "--at")
    found = [period for period in periods(folder) if moment is None or period.covers(moment)]
    for period in found:
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(period)))
            continue
        parts = [period.since, period.until or f"({period.end})", _named(period.policy), period.backend, period.guard]
        typer.echo("  ".join(_plain(part) for part in parts))
    if not found and not as_json:
        typer.echo("nothing found")


def export(
    folder: Folder,
    to_csv: Annotated[bool, typer.Option("--csv", help="One row for each call.")] = False,
    dsa: Annotated[bool, typer.Option("--dsa", help="Statements of reasons, one JSON object a line.")] = False,
    postgres: Annotated[
        str | None, typer.Option(help="Connection string of a database that receives every record.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print what makes the table for --postgres.")] = False,
    output: Annotated[Path | None, typer.Option(help="File to write.", show_default="standard output")] = None,
    since: Since = None,
    until: Until = None,
    action: Annotated[list[str] | None, typer.Option(help="With --dsa: which actions.", show_default="block")] = None,
    territory: Annotated[list[str] | None, typer.Option(help="With --dsa: a country code; may be repeated.")] = None,
    terms: Annotated[str | None, typer.Option(help="With --dsa: the ground in your terms of service.")] = None,
    terms_url: Annotated[str | None, typer.Option(help="With --dsa: where your terms can be read.")] = None,
) -> None:
    """Write the log in a form that others ask for. Prompts are in none of them.

    `--dsa` writes the fields of the DSA Transparency Database. Which decisions need a statement, and in which
    words, is for you to judge.

    Example: apl-guard audit export /var/log/apl-guard --csv --since 30d --output november.csv
    """
    from apl_guard.audit.export import Platform, calls, statements, write_csv
    from apl_guard.audit.postgres import SCHEMA, export_to_postgres

    if [to_csv, dsa, postgres is not None, schema].count(True) != 1:
        raise InvalidInput("expected one of --csv, --dsa, --postgres and --schema", where="export")
    if schema:
        typer.echo(SCHEMA.strip())
        return
    if postgres is not None:
        typer.echo(f"{export_to_postgres(folder, postgres)} records sent")
        return
    first, last = _moment(since) or "", _moment(until) or "9"
    rows = (row for row in calls(folder) if first <= str(row.get("decided", row.get("ended"))) < last)
    try:
        stream = output.open("w", newline="", encoding="utf-8") if output is not None else sys.stdout
        try:
            if to_csv:
                write_csv(rows, stream)
                return
            platform = Platform(
                **({"terms": terms} if terms is not None else {}), terms_url=terms_url, territories=territory or ()
            )
            for statement in statements(rows, platform, action or ("block",)):
                stream.write(json.dumps(statement) + "\n")
        finally:
            if output is not None:
                stream.close()
    except OSError as error:
        raise StorageFailed(f"cannot be written ({error.strerror})", path=output or "output") from error


def reindex(folder: Folder, index: IndexFile = None) -> None:
    """Make the index for questions anew from the log.

    Example: apl-guard audit reindex /var/log/apl-guard
    """
    from apl_guard.audit.index import Index

    with Index(folder, index) as opened:
        typer.echo(f"{opened.rebuild()} records")


def _digests(folder: Path, keys: Path | None, prompt: str | None, subject: str | None) -> list[list[str]]:
    """What a prompt and a subject may be called in records; one of each list has to stand there."""
    from apl_guard.audit.digest_keys import DigestKeys
    from apl_guard.audit.subjects import SubjectKeys

    found = DigestKeys.of_log(folder, keys)
    digests = []
    if prompt is not None:
        digests.append(list(found.digests_of(sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt)))
    if subject is not None:
        digests.append([SubjectKeys(found.folder, key).name_of(subject) for key in found.kept().values()])
    return digests


def _moment(given: str | None, option: str = "--since") -> str | None:
    """A time as it stands in records."""
    from apl_guard.audit.checkpoint import timestamp_of

    if given is None:
        return None
    try:
        if given[-1:] in _UNITS and given[:-1].isdecimal():
            moment = datetime.now(UTC) - timedelta(**{_UNITS[given[-1]]: int(given[:-1])})
        else:
            moment = datetime.fromisoformat(given)
        return timestamp_of(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp())
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"found {given[:40]!r}; expected a date, a time or such as 24h", where=option) from error


def _line(row: dict[str, Any]) -> str:
    parts = [row["timestamp"], row["event"], row.get("decision_id", row.get("guard"))]
    if str(row["event"]).startswith("policy."):
        parts += [_named(row.get("policy")), _change(row)]
    else:
        parts.append((row.get("policy") or {}).get("name"))
    parts += [row.get(name) for name in ("action", "result", "error", "tenant")]
    return "  ".join(_plain(part) for part in parts if part is not None)


def _named(policy: Any) -> str | None:
    """A policy of a record, with what tells it apart."""
    if not isinstance(policy, Mapping):
        return None
    return f"{policy.get('name')} version {policy.get('version')} {policy.get('mode')} {str(policy.get('digest'))[:12]}"


def _change(row: dict[str, Any]) -> str | None:
    for name, word in (("before", "instead of"), ("refused", "refused")):
        if described := _named(row.get(name)):
            return f"{word} {described}"
    return None


def _counted(row: dict[str, Any]) -> str:
    *values, count = row.values()
    return f"{count:>10}  " + "  ".join(_plain(value) for value in values)


def _plain(value: Any) -> str:
    """A value as it may stand on a terminal: no control characters, nothing that changes direction."""
    text = str(value)
    return text if text.isascii() and text.isprintable() else json.dumps(text)
