"""Help flows to the width of the terminal: a line of a docstring is not a line on the screen."""

from __future__ import annotations

import inspect

import typer

__all__ = ["flow"]


def flow(app: typer.Typer) -> None:
    """Join the lines of each paragraph of the help of every command; typer joins those of the first alone."""
    for command in app.registered_commands:
        written = inspect.cleandoc(command.help or getattr(command.callback, "__doc__", None) or "")
        command.help = "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in written.split("\n\n"))
    for group in app.registered_groups:
        if group.typer_instance is not None:
            flow(group.typer_instance)
