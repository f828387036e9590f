"""`apl-guard audit export`: the log in forms that others ask for."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, TextIO

import typer

from apl_guard.cli.audit_verify import Folder
from apl_guard.cli.moment import Since, Until, moments_of
from apl_guard.cli.options import Output
from apl_guard.cli.reading_bar import reading
from apl_guard.errors import InvalidInput, StorageFailed
from apl_guard.policy import Action
from apl_guard.storage import refuse_device

__all__ = ["export"]


def export(
    folder: Folder,
    to_csv: Annotated[bool, typer.Option("--csv", help="One row for each call.")] = False,
    dsa: Annotated[bool, typer.Option("--dsa", help="Statements of reasons, one JSON object a line.")] = False,
    postgres: Annotated[
        str | None, typer.Option(help="Connection string of a database that receives every record.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the SQL that creates the table for --postgres.")
    ] = False,
    output: Output = None,
    since: Since = None,
    until: Until = None,
    action: Annotated[
        list[Action] | None,
        typer.Option(
            help="With --dsa: for which actions; what the output check withheld counts as block. May be repeated.",
            show_default="block",
            metavar="<allow|anonymize|rewrite|block>",
        ),
    ] = None,
    territory: Annotated[
        list[str] | None,
        typer.Option(
            help="With --dsa: where the decisions hold; a country code, EU or EEA. May be repeated.", metavar="<str>"
        ),
    ] = None,
    terms: Annotated[
        str | None, typer.Option(help="With --dsa: the clause of your terms of service, at most 500 characters.")
    ] = None,
    terms_url: Annotated[str | None, typer.Option(help="With --dsa: where your terms can be read.")] = None,
) -> None:
    """Export the log as CSV, as DSA statements of reasons, or to PostgreSQL. No export holds prompts in clear.

    `--dsa` writes the fields of the DSA Transparency Database. Which decisions need a statement, and in which
    words, is for you to judge. Statements name policies and rules, and may hold no personal data.

    Example: apl-guard audit export /var/log/apl-guard --csv --since 30d --output november.csv
    """
    from apl_guard.audit.export import Platform, calls, statements, write_csv
    from apl_guard.audit.postgres import SCHEMA, export_to_postgres

    if [to_csv, dsa, postgres is not None, schema].count(True) != 1:
        raise InvalidInput("expected one of --csv, --dsa, --postgres and --schema", where="export")
    of_statements = {"--action": action, "--territory": territory, "--terms": terms, "--terms-url": terms_url}
    _refuse(not dsa, "--dsa", of_statements)
    _refuse(not (to_csv or dsa), "--csv and --dsa", {"--since": since, "--until": until, "--output": output})
    if schema:
        typer.echo(SCHEMA.strip())
        return
    if postgres is not None:
        with reading(folder):
            count = export_to_postgres(folder, postgres)
        typer.echo(f"{count} records sent")
        return
    first, last = moments_of(since, until)
    rows = (row for row in calls(folder) if (first or "") <= str(row.get("decided", row.get("ended"))) < (last or "~"))
    given = {name: value for name, value in (("terms", terms), ("terms_url", terms_url)) if value is not None}
    platform = Platform(territory or (), **given) if dsa else None
    # Lines of the export and a bar would write over each other.
    with _written(output) as stream, reading(folder) if output is not None else contextlib.nullcontext():
        count = write_csv(rows, stream) if platform is None else 0
        for statement in () if platform is None else statements(rows, platform, action or ("block",)):
            stream.write(json.dumps(statement) + "\n")
            count += 1
    if output is not None:
        typer.echo(f"{output} written: {count} {'calls' if platform is None else 'statements'}")


def _refuse(wrong: bool, form: str, given: Mapping[str, object]) -> None:
    """Refuse what this form would pass over, so that nobody takes all calls for those that were asked for.

    Raises:
        InvalidInput: An option of another form is given.
    """
    for option, value in given.items():
        if wrong and value is not None:
            raise InvalidInput(f"goes with {form} only; leave it out", where=option)


@contextlib.contextmanager
def _written(output: Path | None) -> Iterator[TextIO]:
    """Where an export goes. A file is there whole or not at all; one that was there stays until then."""
    if output is None:
        if sys.stdout is None:  # closed, as by `>&-`
            raise InvalidInput("standard output is closed; name a file", where="--output")
        yield sys.stdout
        return
    refuse_device(output)
    temporary = output.with_name(f".{output.name}.{os.urandom(8).hex()}")
    try:
        with temporary.open("x", newline="", encoding="utf-8", errors="backslashreplace") as stream:
            yield stream
        temporary.replace(output)
    except OSError as error:
        raise StorageFailed(f"cannot be written ({error.strerror})", path=output) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
