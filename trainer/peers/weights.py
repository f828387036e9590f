"""Cross-attention weights: finding them, and a second pipe in which they are others.

Changes are shipped as differences, W′ − W, in half precision, and added to whatever model they are applied to: the one
they were learned on, or one that was trained further since. That is how weight edits are carried over in practice.

Letters: D width of the prompt embeds.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from apl_guard.errors import ModelInvalid
from apl_guard.trainer.model.pipeline import with_parts
from apl_guard.trainer.peers.peer import Applied, Files

FILE = "changes.safetensors"


def cross_attention(unet: Any, *, keys_and_values: bool = False) -> dict[str, nn.Parameter]:
    """The parameters of all cross-attention layers, by name.

    Args:
        unet: A UNet2DConditionModel.
        keys_and_values: Only W_K and W_V, the two projections that read the prompt embeds.

    Raises:
        ModelInvalid: It has none.
    """
    ends = ("to_k.weight", "to_v.weight") if keys_and_values else ("",)
    found = {name: p for name, p in named_parameters(unet).items() if ".attn2." in name and name.endswith(ends)}
    if not found:
        raise ModelInvalid(f"found no cross-attention in this {type(unet).__name__}; expected layers named attn2")
    return found


def named_parameters(unet: Any) -> dict[str, nn.Parameter]:
    """All parameters by the names that they have without adapters such as LoRA around their layers."""
    return {name.replace(".base_layer", ""): p for name, p in unet.named_parameters()}


def with_own_unet(pipe: Any) -> Any:
    """A pipe whose UNet and scheduler are copies; all else is shared."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    own = with_parts(pipe, unet=copy.deepcopy(pipe.unet), scheduler=scheduler)
    own.set_progress_bar_config(disable=True)
    return own


def changes_of(before: Any, after: Any) -> Files:
    """The differences of two UNets' cross-attention weights, as a file; layers that are equal are left out."""
    old = named_parameters(before)
    changes = {
        name: (new.detach().float() - old[name].detach().float()).half().cpu().contiguous()
        for name, new in cross_attention(after).items()
        if not torch.equal(new, old[name])
    }
    return {FILE: save(changes)}


@torch.no_grad()
def with_changes(pipe: Any, files: Files) -> Any:
    """A pipe whose UNet has the changed weights.

    Raises:
        ModelInvalid: The changes are of another kind of model.
    """
    changes: Mapping[str, Tensor] = load(files[FILE])
    own = with_own_unet(pipe)
    weights = named_parameters(own.unet)
    for name, change in changes.items():
        weight = weights.get(name)
        if weight is None or weight.shape != change.shape:
            found = None if weight is None else tuple(weight.shape)
            raise ModelInvalid(f"changes for {name} of shape {tuple(change.shape)}; this model has {found}")
        weight.add_(change.to(weight))
    return own


@dataclass(frozen=True)
class WeightEdit:
    """A peer whose fields are its options, and whose files are changes of the cross-attention."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All options."""
        return asdict(self)

    def apply(self, pipe: Any, files: Files) -> Applied:
        """A copy of the model with the changed weights."""
        return Applied(with_changes(pipe, files))
