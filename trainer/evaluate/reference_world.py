"""Which models the judges of the reference world can look at. Others are refused before they are downloaded or read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel

from apl_guard.errors import ModelInvalid
from apl_guard.prefix.places import SHIPPED_NAME
from apl_guard.trainer.minifaces.faces import SIZE
from apl_guard.trainer.model.families import check_family, family_of
from apl_guard.trainer.model.pipeline import open_pipe
from apl_guard.trainer.model.unets import StableDiffusion

__all__ = ["open_reference_world", "require_reference_world"]

_CLASS = StableDiffusionPipeline.__name__


def open_reference_world(model: str | Path) -> Any:
    """Open a model of the reference world.

    Args:
        model: A folder in the format of diffusers, an id on the Hugging Face hub, or `minifaces`.

    Raises:
        ModelInvalid: It cannot be opened, or is another model; that is found out from its configuration, for weights
            may be many gigabytes.
    """
    if str(model) != SHIPPED_NAME and (found := _kind_of(str(model))) is not None:
        _check(*found, where=str(model))
    pipe = open_pipe(model)
    require_reference_world(pipe)
    return pipe


def require_reference_world(pipe: Any) -> None:
    """Make sure that the judges of the reference world can look at what a pipe draws.

    Raises:
        ModelInvalid: It is of another class, or draws images of another size.
    """
    name = type(pipe).__name__
    check_family(pipe, name)
    family = family_of(pipe)
    _check(_CLASS if type(family) is StableDiffusion else name, family.side, where=name)


def _kind_of(model: str) -> tuple[str, int] | None:
    """The class of a model and the side of its images; None where it does not say, of which opening it tells."""
    try:
        name = str(DiffusionPipeline.load_config(model)["_class_name"])
        if name != _CLASS:
            return name, SIZE
        side = UNet2DConditionModel.load_config(model, subfolder="unet")["sample_size"]
        blocks = AutoencoderKL.load_config(model, subfolder="vae")["block_out_channels"]
        return name, int(side) * 2 ** (len(blocks) - 1)
    except Exception:
        return None  # the libraries raise a dozen different types here


def _check(name: str, side: int, where: str) -> None:
    if name == _CLASS and side == SIZE:
        return
    found = f"draws images of {side} pixels" if name == _CLASS else f"is a {name}"
    raise ModelInvalid(
        f"{found}; the judges of the reference world look at images of {SIZE} pixels by a {_CLASS}. On other models, "
        "measure a prefix with apl-guard eval --protocol apl-2026 --identities --references --detector --recogniser",
        where=where,
    )
