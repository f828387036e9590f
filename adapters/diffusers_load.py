"""Opening a diffusers model from a folder or from the hub, with errors that say what is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from apl_guard.errors import ModelInvalid

__all__ = ["load_pipe"]

_INDEX = "model_index.json"


def load_pipe(path_or_id: str | os.PathLike[str], **options: Any) -> Any:
    """Open a pipeline.

    Args:
        path_or_id: A folder in the diffusers format, or an id on the Hugging Face hub.
        options: Passed to `DiffusionPipeline.from_pretrained`, such as `torch_dtype`.

    Returns:
        The pipeline, of the class that the model names.

    Raises:
        ModelInvalid: The folder is missing or half-written, or the hub has no such model or is out of reach.
    """
    from diffusers import DiffusionPipeline

    path = Path(path_or_id)
    if path.exists():
        _check_folder(path)
    elif _is_path(str(path_or_id)):
        raise ModelInvalid("no such folder; expected a model in the diffusers format", where=path)
    try:
        return DiffusionPipeline.from_pretrained(str(path_or_id), use_safetensors=True, **options)
    except Exception as error:
        # The libraries below raise a dozen different types here, and none of them is about anything else.
        if path.exists():
            message = f"cannot be opened ({_first_line(error)}); damaged or half-written, get it again"
        else:
            message = (
                "no such folder here, and the hub could not provide it "
                f"({type(error).__name__}); check the id and the network, or download the model first"
            )
        raise ModelInvalid(message, where=str(path_or_id)) from error


def _is_path(text: str) -> bool:
    """Whether a text can only be a path: hub ids are `name` or `owner/name`."""
    return text.startswith((".", "/", "~", os.sep)) or text.count("/") > 1 or os.path.isabs(text)


def _check_folder(path: Path) -> None:
    """Find what is missing before the libraries do, which name neither folder nor file."""
    problem = f"no readable {_INDEX}; expected a model in the diffusers format"
    if not (path / _INDEX).is_file():  # a pipe would be waited for
        raise ModelInvalid(problem, where=path)
    try:
        index = json.loads((path / _INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelInvalid(problem, where=path) from error
    if not isinstance(index, dict):
        raise ModelInvalid(problem, where=path)
    for name, kind in index.items():
        is_component = isinstance(kind, list) and len(kind) == 2 and all(kind)
        if is_component and not any((path / name).glob("*.json")):
            raise ModelInvalid(f"component '{name}' is missing; the folder is half-written, get it again", where=path)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
