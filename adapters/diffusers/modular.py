"""Modular pipelines of diffusers: put together from blocks, each of which says what it takes and what it makes.

Only blocks are covered that diffusers itself brings for a model that is tested here: any other may read the prompt in
a way of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .arguments import TEXT, is_known

__all__ = ["inputs_of", "is_modular", "reason_against_blocks", "reason_against_model"]

_BLOCKS = "diffusers.modular_pipelines."
_JOINS = f"{_BLOCKS}modular_pipeline"

# Sub-packages of `diffusers.modular_pipelines`: models that have no pipeline of the other kind.
_COVERED = frozenset({"flux3"})
_REFUSED = {
    "anima": "what stands behind its text encoder reads the tokens of the prompt once more, and gets no prefix",
}


def is_modular(cls: type[Any]) -> bool:
    """Whether pipes of a class are put together from blocks."""
    return any(base.__module__.startswith(_BLOCKS) for base in cls.__mro__)


def reason_against_model(cls: type[Any]) -> str | None:
    """Why the guard cannot stand in front of modular pipelines of a class, or None where it can.

    Args:
        cls: The class.
    """
    families = _families_of(cls)
    if families & _COVERED:
        return None
    if found := families & _REFUSED.keys():
        return _REFUSED[found.pop()]
    return (
        "it is put together from blocks, which are covered for Flux.3 alone; use the ordinary pipeline of the same "
        "model, such as StableDiffusionXLPipeline, if it has one"
    )


def reason_against_blocks(pipe: Any) -> str | None:
    """Why the guard cannot stand in front of what a modular pipeline is put together from, or None where it can.

    Args:
        pipe: The pipeline.
    """
    blocks, families = pipe.blocks, _families_of(type(pipe))
    kinds = {type(blocks), *(type(block) for _, block in _within(blocks))}
    foreign = sorted(cls.__name__ for cls in kinds if not _is_own(cls, families))
    if foreign:
        return f"diffusers does not bring {', '.join(foreign)} for this model, so nobody can tell what such blocks read"
    for name, block in _within(blocks):
        if any(output.name in TEXT for output in block.intermediate_outputs):
            return (
                f"its block '{name}' writes the prompt anew, so no prefix can be kept in front of it; make the "
                f"pipeline without it: blocks.sub_blocks.pop('{name}')"
            )
    if "prompt" not in inputs_of(blocks):
        return "it takes no prompt"
    if not any(output.name == "images" for _, block in _within(blocks) for output in block.intermediate_outputs):
        return "its blocks end before there are images"
    unknown = sorted(name for name in inputs_of(blocks) if not is_known(name))
    if unknown:
        return f"it takes {', '.join(unknown)}, which this version of apl-guard does not know"
    return None


def inputs_of(blocks: Any) -> dict[str, Any]:
    """Argument → its default. What has no name is handed on from block to block."""
    return {taken.name: taken.default for taken in blocks.inputs if taken.name is not None}


def _within(blocks: Any) -> Iterator[tuple[str, Any]]:
    """Every block inside others, however deep, with its name."""
    for name, block in blocks.sub_blocks.items():
        yield name, block
        yield from _within(block)


def _is_own(cls: type[Any], families: set[str]) -> bool:
    """Whether a block belongs to one of the families, or only joins others."""
    return _family_of(cls) in families or cls.__module__ == _JOINS


def _families_of(cls: type[Any]) -> set[str]:
    """Those of a class and of all that it is made of."""
    return {name for base in cls.__mro__ if (name := _family_of(base)) is not None}


def _family_of(cls: type[Any]) -> str | None:
    """The sub-package of `diffusers.modular_pipelines` that a class stands in."""
    inner = cls.__module__.removeprefix(_BLOCKS)
    return inner.partition(".")[0] if inner != cls.__module__ and "." in inner else None
