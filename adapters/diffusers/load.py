"""Opening a diffusers model from a folder or from the hub, with errors that say what is wrong."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from apl_guard.errors import ModelInvalid

__all__ = ["load_pipe"]

_INDEX = "model_index.json"
_SHARD = re.compile(r"-\d{5}-of-\d{5}")


def load_pipe(path_or_id: str | os.PathLike[str], **options: Any) -> Any:
    """Open a pipeline.

    Args:
        path_or_id: A folder in the diffusers format, or an id on the Hugging Face hub.
        options: Passed to `DiffusionPipeline.from_pretrained`, such as `revision`. A folder that holds its weights
            in one variant alone, such as fp16, is opened as that.

    Returns:
        The pipeline, of the class that the model names.

    Raises:
        ModelInvalid: The folder is missing or half-written, its weights are no safetensors, or the hub has no such
            model or is out of reach.
    """
    from diffusers import DiffusionPipeline

    path = Path(path_or_id)
    if path.exists():
        options = _check_folder(path) | options
    elif _is_path(str(path_or_id)):
        raise ModelInvalid("no such folder; expected a model in the diffusers format", where=path)
    try:
        pipe = DiffusionPipeline.from_pretrained(str(path_or_id), use_safetensors=True, **options)
    except Exception as error:
        # The libraries below raise a dozen different types here, and none of them is about anything else.
        if path.exists():
            message = f"cannot be opened ({_first_line(error)}); damaged or half-written, get it again"
        else:
            message = (
                "no such folder here, and the hub could not provide it "
                f"({_first_line(error)}); check the id and the network, or download the model and give its folder"
            )
        raise ModelInvalid(message, where=str(path_or_id)) from error
    _check_weights(pipe, path)
    return pipe


def _is_path(text: str) -> bool:
    """Whether a text can only be a path: hub ids are `name` or `owner/name`."""
    return text.startswith((".", "/", "~", os.sep)) or text.count("/") > 1 or os.path.isabs(text)


def _check_folder(path: Path) -> dict[str, str]:
    """Find what is missing before the libraries do, which name neither folder nor file.

    Returns:
        The options with which the folder is opened.
    """
    problem = f"no readable {_INDEX}; expected a model in the diffusers format"
    if path.is_file():
        problem = (
            "a file; expected a folder in the diffusers format. Open a checkpoint of one file in Python with "
            "from_single_file of its pipeline class, and save it with save_pretrained"
        )
    if not (path / _INDEX).is_file():  # a pipe would be waited for
        if (path / f"modular_{_INDEX}").is_file():
            problem = "a modular pipeline, which is put together in Python; give the pipe itself in place of its folder"
        raise ModelInvalid(problem, where=path)
    try:
        index = json.loads((path / _INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelInvalid(problem, where=path) from error
    if not isinstance(index, dict):
        raise ModelInvalid(problem, where=path)
    _check_no_code(path, index)
    variants = set[str]()
    for name, kind in index.items():
        if not (isinstance(kind, list) and len(kind) == 2 and all(kind)):
            continue
        if not any((path / name).glob("*.json")):
            raise ModelInvalid(
                f"component '{name}' is missing; the folder is half-written, get it again (or, if the model shall do "
                f"without, write [null, null] for it in {_INDEX})",
                where=path,
            )
        if "Tokenizer" in str(kind[1]) and not _has_vocabulary(path / name, str(kind[1])):
            raise ModelInvalid("no vocabulary in it; the folder is half-written, get it again", where=path / name)
        weights = [file.name for file in (path / name).glob("*.safetensors")]
        if not weights and any((path / name).glob("*.bin")):
            raise ModelInvalid(
                "weights as .bin, which can hold code; expected .safetensors: get the model in that format, or save it "
                "so with save_pretrained",
                where=path / name,
            )
        variants.add(_variant_of(weights))
    variants.discard("")  # diffusers takes plain weights where a component has no variant
    return {"variant": variants.pop()} if len(variants) == 1 else {}


def _check_no_code(path: Path, index: dict[str, Any]) -> None:
    """Refuse a folder that brings code of its own, which diffusers before 0.38 runs unasked.

    It unpacks whatever it finds there, also a text of two letters or an object of two keys.
    """
    for name, kind in index.items():
        folder = path if name == "_class_name" else path / name
        module = next(iter(kind), "") if isinstance(kind, list | dict | str) else ""
        if os.path.isfile(folder / f"{module}.py"):
            raise ModelInvalid(f"{_INDEX} names code for '{name}' ({module!a:.80}), which is not run", where=path)
        if name != "_class_name" and os.path.isfile(folder / _INDEX):
            raise ModelInvalid(f"component '{name}' is a pipeline of its own, which may name code", where=path)


def _has_vocabulary(folder: Path, kind: str) -> bool:
    """Whether a tokenizer has words; transformers makes one that has none where the files are missing."""
    names = {file.name for file in folder.iterdir()}
    return (
        kind.startswith("ByT5")  # its words are bytes
        or {"vocab.json", "merges.txt"} <= names
        or any(name in ("tokenizer.json", "vocab.txt") or name.endswith((".model", ".tiktoken")) for name in names)
    )


def _variant_of(files: list[str]) -> str:
    """The only variant in which a component has its weights; "" where they are plain, in several, or absent.

    Example:
        >>> _variant_of(["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"])
        'fp16'
        >>> _variant_of(["model.safetensors", "model.fp16.safetensors"])
        ''
    """
    found = {_SHARD.sub("", name).partition(".")[2].removesuffix("safetensors").strip(".") for name in files}
    return found.pop() if len(found) == 1 else ""


def _check_weights(pipe: Any, path: Path) -> None:
    """Weights that are in no file: diffusers leaves them empty, transformers draws them at random.

    Raises:
        ModelInvalid: There are some.
    """
    import torch
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    for name, part in pipe.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        missing = {key for key, weight in part.named_parameters() if weight.is_meta}
        if isinstance(part, (CLIPTextModel, CLIPTextModelWithProjection)) and (path / name).is_dir():
            kept = {"." + key for key in _keys_in(path / name)}
            # Where it is in a larger model, it has a longer name.
            missing |= {key for key, _ in part.named_parameters() if not any(k.endswith("." + key) for k in kept)}
        if missing:
            msg = f"{len(missing)} weights of '{name}' are missing, such as {min(missing)}; get the model again"
            raise ModelInvalid(msg, where=path)


def _keys_in(folder: Path) -> list[str]:
    from safetensors import safe_open

    keys: list[str] = []
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            keys += tensors.keys()
    return keys


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
