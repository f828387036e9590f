"""What a command says that was stopped while it trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

__all__ = ["telling_where_it_stopped"]


@contextmanager
def telling_where_it_stopped() -> Iterator[None]:
    """After Ctrl-C or a termination signal, say what training said of it, and exit with 130."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        typer.echo(str(stopped) or "stopped", err=True)
        raise typer.Exit(130) from None
