"""`--quiet`: no progress bars, of the libraries below neither."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Quiet"]


def _silence_libraries(wanted: bool) -> bool:
    if wanted:
        from diffusers.utils import logging as of_diffusers
        from transformers.utils import logging as of_transformers

        of_diffusers.disable_progress_bar()
        of_transformers.disable_progress_bar()
    return wanted


Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress bars.", callback=_silence_libraries)]
