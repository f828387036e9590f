"""`apl-guard audit query | tail | stats | policies | reindex`: what is in the log."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apl_guard.cli.audit_lines import counted, line_of, named, plain
from apl_guard.cli.audit_proofs import Keys
from apl_guard.cli.audit_verify import Folder, Image
from apl_guard.cli.digests import digests_of, note_missing
from apl_guard.cli.moment import Since, Until, moment_of, moments_of
from apl_guard.cli.options import Json, JsonLines, put_error
from apl_guard.cli.reading_bar import reading
from apl_guard.errors import InvalidInput
from apl_guard.policy import Action

if TYPE_CHECKING:
    from apl_guard.audit.index import Index

__all__ = ["policies", "query", "reindex", "stats", "tail"]

_AT_ONCE = 1000
"""Records that `tail -f` shows before it looks for more."""
_LOOK_AGAIN_SECONDS = 0.5
_FEW = 20
"""Values of a column, from which they are not listed any more."""

IndexFile = Annotated[
    Path | None, typer.Option("--index", help="The index for queries.", show_default="index.sqlite in the log's folder")
]


def query(
    folder: Folder,
    since: Since = None,
    until: Until = None,
    action: Annotated[Action | None, typer.Option(help="What the policy said.")] = None,
    result: Annotated[str | None, typer.Option(help="How calls ended: passed, blocked, invalid, failed, …")] = None,
    policy: Annotated[str | None, typer.Option(help="Name of the policy.")] = None,
    tenant: Annotated[str | None, typer.Option(help="For whom the call was made.")] = None,
    decision: Annotated[str | None, typer.Option(help="Id of a decision.")] = None,
    event: Annotated[str | None, typer.Option(help="Such as guard.decision or policy.reloaded.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Calls with this prompt, or one that looks like it; - reads it from standard input."),
    ] = None,
    image: Image = None,
    subject: Annotated[str | None, typer.Option(help="About this subject, as your platform calls it.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only records of this kind; COLUMN= finds calls without a value. May be repeated.",
            metavar="COLUMN=VALUE",
        ),
    ] = None,
    group_by: Annotated[
        list[str] | None, typer.Option(help="Count by this column. May be repeated.", metavar="COLUMN")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10**9, help="Most lines to print.")] = 100,
    index: IndexFile = None,
    keys: Keys = None,
    as_json: JsonLines = False,
) -> None:
    """Query the log, through an index that is first brought up to date. The newest records come first.

    --since and --until go by the time in each record, which is that of the machine's clock.

    Options about decision and outcome together, such as --tenant with --result, show and count the outcomes.

    Records hold keyed digests of prompts and subjects. --prompt and --subject look under every digest key that is kept.
    --image finds the calls that released an image, as long as its pixels are unchanged: JPEG changes them.

    Columns: timestamp, event, decision_id, policy, policy_version, policy_digest, mode, tenant, route, subject,
    backend, action, effective_action, category, rules, result, error, prefix, prefix_digest, images, protection,
    overhead_ms, generation_ms. Images without protection are found with --where protection=missing, those without a
    prefix with --where prefix= --result passed, the rules that blocked most with --result blocked --group-by rules.

    Example: apl-guard audit query /var/log/apl-guard --since 7d --action block --group-by policy
    """
    from apl_guard.audit.images import CHANGED_PIXELS, digest_of_file
    from apl_guard.audit.index import Index
    from apl_guard.audit.question import Question
    from apl_guard.metrics import RESULTS

    if result is not None and result not in (known := (*RESULTS, "unknown")):  # the process died before the call ended
        raise InvalidInput(f"found {result[:40]!r}; expected one of {', '.join(known)}", where="--result")
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
    digests = digests_of(folder, keys, prompt, subject) if prompt is not None or subject is not None else None
    # One more than is printed, to know whether there are more.
    drawn = None if image is None else digest_of_file(image)
    question = Question(conditions, *moments_of(since, until), group_by or (), limit + 1, digests, drawn)
    with Index(folder, index) as opened:
        with reading(folder):
            opened.update()
        if digests is not None:
            note_missing(folder, keys, opened)
        row = None
        for number, row in enumerate(opened.ask(question)):
            if group_by and not number and not as_json:
                typer.echo(f"{'count':>10}  " + "  ".join(group_by))
            if number == limit:
                put_error(f"there are more than these {limit}; --limit shows more", typer.colors.YELLOW)
                break
            typer.echo(json.dumps(row) if as_json else line_of(row) if not group_by else counted(row))
        if row is None:
            _note_unknown(opened, conditions)
            if drawn is not None:
                put_error(CHANGED_PIXELS, typer.colors.YELLOW)
        elif decision is not None and _is_open(opened, decision):
            put_error(
                "no outcome of this call is on record: it is under way, or its process died or could not write, which "
                f"gives no image; what is known of its end: apl-guard audit prove {folder} {decision}",
                typer.colors.YELLOW,
            )
    if row is None and not as_json:
        typer.echo("nothing found")


def _is_open(index: Index, decision: str) -> bool:
    """Whether nothing says how a call ended."""
    from apl_guard.audit.question import Question

    found = index.ask(Question({"decision_id": decision}, group_by=("event",)))
    return not {"guard.outcome", "guard.refusal"} & {str(row["event"]) for row in found}


def _note_unknown(index: Index, conditions: Mapping[str, str | int | float]) -> None:
    """Say of what value there is no record at all, or what was misspelt looks like what never happened."""
    from apl_guard.audit.question import Question

    for name, value in conditions.items():
        if value != "" and next(index.ask(Question({name: value}, limit=1)), None) is None:
            rows = list(index.ask(Question({}, group_by=(name,), limit=_FEW)))
            known = ", ".join(plain(row[name]) for row in rows if row[name] is not None)
            is_listed = len(rows) < _FEW and name not in ("decision_id", "subject", "timestamp")
            named = f"; there are: {known or 'none'}" if is_listed else ""
            put_error(f"no record has {name} {value!a:.60}{named}", typer.colors.YELLOW)


def tail(
    folder: Folder,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=10**9, help="How many records to show.")] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue with new records as they are written.")
    ] = False,
    index: IndexFile = None,
    as_json: JsonLines = False,
) -> None:
    """Show the newest records, in the order in which they were written.

    Example: apl-guard audit tail /var/log/apl-guard -f
    """
    from apl_guard.audit.index import Index
    from apl_guard.audit.newest import newest

    with Index(folder, index) as opened:
        with reading(folder):
            opened.update()
        rows = newest(opened, folder, lines)
        shown = opened.places()  # nothing was added since: what is written meanwhile comes next
        while True:
            for row in rows:
                typer.echo(json.dumps(row) if as_json else line_of(row))
                shown[row["writer"]] = max(row["seq"], shown.get(row["writer"], -1))
            if not follow:
                return
            sys.stdout.flush()
            if len(rows) < _AT_ONCE:
                time.sleep(_LOOK_AGAIN_SECONDS)
            opened.update()
            rows = list(opened.newer(shown, _AT_ONCE))


def stats(
    folder: Folder, since: Since = None, until: Until = None, index: IndexFile = None, as_json: Json = False
) -> None:
    """Count decisions, how calls ended, how released images were protected, and what is missing.

    Only `images` counts images; everything else counts calls.

    Example: apl-guard audit stats /var/log/apl-guard --since 30d
    """
    from apl_guard.audit.index import Index
    from apl_guard.audit.question import Question

    with Index(folder, index) as opened:
        with reading(folder):
            opened.update()
        first, last = moments_of(since, until)

        def count(name: str, **conditions: str | int | float) -> dict[str, int]:
            rows = opened.ask(Question(conditions, first, last, (name,), 1000))
            return {"not on record" if row[name] is None else str(row[name]): row["count"] for row in rows}

        def images() -> dict[str, int]:
            released = Question({"result": "passed"}, first, last, ("protection", "images"), 10_000)
            found: Counter[str] = Counter()
            for row in opened.ask(released):
                number = row["images"] if isinstance(row["images"], int) else 0  # somebody may have written the record
                found["not on record" if row["protection"] is None else str(row["protection"])] += number * row["count"]
            return dict(found)

        missing, more = opened.unwritten(first, last)
        unwritten = Counter(event for event, _ in missing)
        # Where nothing was decided, the call ended with its refusal, and where a record could not be written, without.
        ended = Counter(count("result", event="guard.outcome")) + Counter(count("result", event="guard.refusal"))
        ended["failed"] += sum(number for event, number in unwritten.items() if event.startswith("guard."))
        found = {
            "events": count("event"),
            "actions": count("action", event="guard.decision"),
            "policies": count("policy", event="guard.decision"),
            "results": dict((+ended).most_common()),
            "protection": count("protection", event="guard.outcome", result="passed"),
            "images": images(),
            "open": {"decisions without outcome": opened.open_decisions(first, last)},
            "unwritten": dict(unwritten.most_common()) | ({"not named": more} if more else {}),
        }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, counts in found.items():
        typer.echo(name)
        for value, number in counts.items():
            typer.echo(f"  {number:>10}  {plain(value)}")


def policies(
    folder: Folder,
    at: Annotated[str | None, typer.Option(help="Only what was in force then: 2026-11-01T12:00Z, or 24h ago.")] = None,
    as_json: JsonLines = False,
) -> None:
    """Show which policy was in force when: from the start of a guard, from reload to reload, to the end.

    To prove it to others: apl-guard audit prove LOG GUARD, with the id of the guard that is shown here.

    Example: apl-guard audit policies /var/log/apl-guard --at 2026-11-01T12:00Z
    """
    from apl_guard.audit.periods import periods

    moment = moment_of(at, "--at")
    with reading(folder):
        found = [period for period in periods(folder) if moment is None or period.covers(moment)]
    for period in found:
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(period)))
            continue
        parts = [period.since, period.until or f"({period.end})", named(period.policy), period.backend, period.guard]
        if period.set_back is not None:
            parts.append("(clock set back, shows {} to {})".format(*period.set_back))
        typer.echo("  ".join(plain(part) for part in parts))
    if not found and not as_json:
        typer.echo("nothing found")


def reindex(folder: Folder, index: IndexFile = None) -> None:
    """Rebuild the index for queries from the log.

    Example: apl-guard audit reindex /var/log/apl-guard
    """
    from apl_guard.audit.index import Index

    with Index(folder, index) as opened:
        with reading(folder):
            count = opened.rebuild()
        typer.echo(f"{count} records")
