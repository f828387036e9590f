"""`--seed`: the same range in every command."""

from __future__ import annotations

from typing import Any

import typer

__all__ = ["seed_option"]


def seed_option(help: str, **options: Any) -> Any:
    """The option of a seed, in the range of `TrainConfig.seed`, which torch and every part of the trainer take.

    Args:
        help: What the seed is of.
        options: Further ones of `typer.Option`.
    """
    return typer.Option(min=-(2**62), max=2**62 - 1, help=help, **options)
