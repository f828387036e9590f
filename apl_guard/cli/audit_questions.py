"""`apl-guard audit query | tail | stats | export | reindex`: what is in the log."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from apl_guard.cli.audit_verify import Folder, Json
from apl_guard.errors import InvalidInput, StorageFailed

__all__ = ["export", "query", "reindex", "stats", "tail"]

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
    event: Annotated[str | None, typer.Option(help="Such as guard.decision or audit.recovery.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE; may be repeated.")] = None,
    group_by: Annotated[list[str] | None, typer.Option(help="Count by this column; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many lines.")] = 100,
    index: IndexFile = None,
    as_json: Json = False,
) -> None:
    """Ask the log a question, through an index that is brought up to date first.

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
        conditions[name] = float(value) if value.replace(".", "", 1).isdigit() else value
    question = Question(conditions, _moment(since), _moment(until), group_by or (), limit)
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


def _moment(given: str | None) -> str | None:
    """A time as it stands in records."""
    from apl_guard.audit.checkpoint import timestamp_of

    if given is None:
        return None
    if given[-1:] in _UNITS and given[:-1].isdigit() and len(given) < 10:
        return timestamp_of((datetime.now(UTC) - timedelta(**{_UNITS[given[-1]]: int(given[:-1])})).timestamp())
    try:
        moment = datetime.fromisoformat(given)
    except ValueError as error:
        raise InvalidInput(f"found {given[:40]!r}; expected a date, a time or such as 24h", where="--since") from error
    return timestamp_of(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp())


def _line(row: dict[str, Any]) -> str:
    policy = row.get("policy") or {}
    parts = [row["timestamp"], row["event"], row.get("decision_id"), policy.get("name") if policy else None]
    parts += [row.get(name) for name in ("action", "result", "error", "tenant")]
    return "  ".join(_plain(part) for part in parts if part is not None)


def _counted(row: dict[str, Any]) -> str:
    *values, count = row.values()
    return f"{count:>10}  " + "  ".join(_plain(value) for value in values)


def _plain(value: Any) -> str:
    """A value as it may stand on a terminal: no control characters, nothing that changes direction."""
    text = str(value)
    return text if text.isascii() and text.isprintable() else json.dumps(text)
