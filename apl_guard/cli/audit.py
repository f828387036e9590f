"""`apl-guard audit`: the log of decisions and outcomes."""

from __future__ import annotations

import typer

from apl_guard.cli import audit_keys
from apl_guard.cli.audit_export import export
from apl_guard.cli.audit_proofs import consistency, erase, prove, reveal
from apl_guard.cli.audit_questions import policies, query, reindex, stats, tail
from apl_guard.cli.audit_verify import VerifyCommand, verify

__all__ = ["app"]

app = typer.Typer(help="Verify the audit log, query it, and prove what is in it.", no_args_is_help=True)

app.command(cls=VerifyCommand)(verify)
for command in (query, tail, stats, policies, prove, consistency, export, erase, reveal, reindex):
    app.command(no_args_is_help=True)(command)
app.add_typer(audit_keys.app, name="keys")
