"""The weights of a text encoder: under which names, whether they have changed, and their digests.

A digest reads every weight, which takes seconds for a large encoder. So what was computed is kept with the
encoder for as long as `remembered` finds its weights unchanged, which takes a millisecond or two.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from apl_guard.encoder.anatomy import Anatomy
from apl_guard.encoder.token_embedding import token_embedding
from apl_guard.errors import ModelInvalid

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = [
    "Memory",
    "adapters_in",
    "digest_of",
    "largest_norm",
    "projection_of",
    "remembered",
    "table_name",
    "weights_of",
]

_ADAPTER = ("lora_", "adapter_", "hada_", "lokr_", "oft_", "ia3_")

T = TypeVar("T")


def weights_of(text_encoder: nn.Module) -> dict[str, Tensor]:
    """The tensors that make up a text encoder, by names that every version of transformers agrees on, sorted.

    Left out are the projection, which not every pipeline uses, and what loaded adapters added.

    Raises:
        ModelInvalid: Some are not in memory.
    """
    return {name: tensor for name, tensor in _named(text_encoder) if not _is_aside(name)}


def adapters_in(text_encoder: nn.Module) -> dict[str, Tensor]:
    """The tensors that adapters such as LoRA put into a text encoder, by name, sorted.

    Example:
        >>> from torch import nn
        >>> adapters_in(nn.Embedding(3, 2))
        {}
    """
    return {name: tensor for name, tensor in _named(text_encoder) if _is_adapter(name)}


def projection_of(text_encoder: nn.Module) -> dict[str, Tensor]:
    """The tensors of the projection that some pipelines use and others do not, by name."""
    return {name: tensor for name, tensor in _named(text_encoder) if name.startswith("text_projection")}


def _is_adapter(name: str) -> bool:
    return any(part.startswith(_ADAPTER) for part in name.split("."))


def _is_aside(name: str) -> bool:
    return _is_adapter(name) or name.startswith("text_projection")


def _named(text_encoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    import torch

    if any(map(_is_on_disk, text_encoder.modules())):
        raise ModelInvalid(
            "the weights of the text encoder are on the disk, so nobody can tell which encoder it is; offload it "
            "without offload_to_disk_path",
        )
    found: dict[str, Tensor] = {}
    offloaded = _offloaded(text_encoder)
    for name, tensor in text_encoder.state_dict(keep_vars=True).items():
        tensor = offloaded.get(name, tensor)
        if not isinstance(tensor, torch.Tensor):
            raise ModelInvalid(
                f"'{name}' of the text encoder is of type {type(tensor).__name__}; expected a tensor, for nobody can "
                "tell otherwise which encoder it is; quantise it in a way that keeps tensors, or leave it as it is",
            )
        if tensor.is_meta:
            raise ModelInvalid(
                f"weight '{name}' of the text encoder is not in memory, so nobody can tell which encoder it is; "
                "load it, or offload it with accelerate",
            )
        # position_ids is a constant that some versions save.
        if not name.endswith("position_ids"):
            found[canonical_name(name)] = tensor
    # One table under two names, which some versions save once and others twice: the last name counts.
    last = {_place(found[name]): name for name in sorted(found)}
    for name in sorted(found):
        if last[_place(found[name])] == name:
            yield name, found[name]


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Where the values of a tensor lie: equal for one table under two names, whose tensors are two objects where
    accelerate keeps them."""
    try:
        place = tensor.data_ptr()
    except RuntimeError:  # quantised tensors may consist of several
        place = 0
    return (tensor.device, place, tensor.shape, tensor.stride(), tensor.dtype) if place else (id(tensor),)


def canonical_name(name: str) -> str:
    """The name of a weight without what compilers, adapters and older formats put around it.

    Example:
        >>> canonical_name("_orig_mod.text_model.encoder.layers.0.mlp.fc1.base_layer.weight")
        'encoder.layers.0.mlp.fc1.weight'
    """
    name = name.replace("_orig_mod.", "").replace(".base_layer.", ".")
    name = name.removeprefix("cond_stage_model.").removeprefix("transformer.text_model.")
    return name.removeprefix("text_model.")


def _offloaded(text_encoder: nn.Module) -> dict[str, Tensor]:
    """Where accelerate keeps the weights of layers that it loads for one moment each."""
    found: dict[str, Tensor] = {}
    for name, module in text_encoder.named_modules():
        hook: Any = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            kept = getattr(one, "weights_map", None)
            if kept is None or not getattr(one, "offload", False):
                continue
            for own in [key for key, _ in module.named_parameters(recurse=False)]:
                found[f"{name}.{own}" if name else own] = kept[own]
    return found


def _is_on_disk(module: Any) -> bool:
    """Whether diffusers keeps weights of a module in a file. Their tensors hold whatever lies in memory, meanwhile."""
    registry = getattr(module, "_diffusers_hook", None)
    hook = None if registry is None else registry.get_hook("group_offloading")
    return getattr(getattr(hook, "group", None), "offload_to_disk_path", None) is not None


def table_name(text_encoder: nn.Module) -> str:
    """The canonical name of the token embedding's table.

    Raises:
        ModelInvalid: There is none.
    """
    table = token_embedding(text_encoder)
    for name, module in text_encoder.named_modules():
        if module is table:
            # Under the name that `weights_of` gives it, where the table has two.
            weight = _offloaded(text_encoder).get(f"{name}.weight", table.weight)
            named = {_place(tensor): key for key, tensor in weights_of(text_encoder).items()}
            return named.get(_place(weight), canonical_name(f"{name}.weight"))
    raise ModelInvalid("the text encoder has no token embedding", where=type(text_encoder).__name__)


def digest_of(
    weights: dict[str, Tensor], rounded: torch.dtype, *, start: str, rows: dict[str, int] | None = None
) -> str:
    """SHA-256 over names, shapes and values, in hex.

    Args:
        weights: From `weights_of`.
        rounded: float16, in which copies in float32 and float16 agree; or bfloat16, in which copies in bfloat16
            agree with both.
        start: What the digest is of, and whatever else shall count.
        rows: Name → how many rows of that tensor count; all unless given.
    """
    import torch

    digest = hashlib.sha256(start.encode())
    with torch.no_grad():
        for name in sorted(weights):
            tensor = weights[name].detach()
            tensor = tensor[: rows[name]] if rows and name in rows else tensor
            tensor = tensor.to("cpu", rounded).contiguous()
            digest.update(json.dumps([name, list(tensor.shape)]).encode())
            digest.update(tensor.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


@dataclass
class Memory:
    """What was computed of weights that have not changed since."""

    tensors: tuple[weakref.ref[Tensor], ...]
    names: tuple[str, ...]
    state: list[object]
    """Of each tensor what it is, and how often it was written to."""
    sample: bytes
    """Some of the values."""
    anatomy: Anatomy | None
    """None where the weights are not in the model but kept elsewhere."""
    values: dict[Hashable, Any] = field(default_factory=dict)

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What is kept under a key; computed the first time."""
        if key not in self.values:
            self.values[key] = compute()
        value: T = self.values[key]
        return value


_memories: weakref.WeakKeyDictionary[nn.Module, Memory] = weakref.WeakKeyDictionary()


def remembered(text_encoder: nn.Module) -> Memory:
    """What is known about a text encoder; nothing, if its weights or adapters changed since the last time.

    A change is noticed by the tensor objects, their versions, and a sample of 256 values of each. Moving the
    encoder to another device, as offloading does in every call, is no change.

    Raises:
        ModelInvalid: Weights are not in memory.
    """
    import torch

    known = _memories.get(text_encoder)
    with torch.no_grad():
        if known is not None and known.anatomy is not None and known.anatomy.is_of(text_encoder):
            tensors = [tensor for reference in known.tensors if (tensor := reference()) is not None]
            if known.state == _state(tensors) and known.sample == _sample(tensors):
                return known
        named = dict(_named(text_encoder))
        tensors = list(named.values())
        state, sample = _state(tensors), _sample(tensors)
    anatomy = None if _offloaded(text_encoder) else Anatomy(text_encoder)
    if (
        known is not None
        and known.names == tuple(named)
        and known.state == state
        and all(reference() is tensor for reference, tensor in zip(known.tensors, tensors, strict=True))
        and known.sample == sample
    ):
        known.anatomy = anatomy
        return known
    memory = Memory(tuple(weakref.ref(tensor) for tensor in tensors), tuple(named), state, sample, anatomy)
    _memories[text_encoder] = memory
    return memory


def _state(tensors: Sequence[Tensor]) -> list[object]:
    return [(t.shape, t.dtype, 0 if t.is_inference() else t._version) for t in tensors]


_RUNS, _RUN = 16, 16
"""256 values of each tensor, in runs of neighbours: every run costs one access to memory and not sixteen."""


def _sample(tensors: Sequence[Tensor]) -> bytes:
    """Some values of each tensor, in the same order on every device."""
    import torch

    if not tensors:
        return b""
    counts = [tensor.numel() for tensor in tensors]
    # Single values of the largest, which is the table of token embeddings: a part of its rows may change alone.
    table = counts.index(max(counts))
    runs: list[Tensor] = []
    single: list[Tensor] = []
    for i, (tensor, count) in enumerate(zip(tensors, counts, strict=True)):
        if count <= _RUNS * _RUN and tensor.ndim == 1:
            single.append(tensor)  # whole; every view that need not be made saves microseconds, and encoders have many
        elif i == table or count < _RUNS * _RUN or not tensor.is_contiguous():
            single.append(tensor.reshape(-1)[:: max(1, count // (_RUNS * _RUN)) | 1])
        else:
            # From the first value to the last, and hardly ever a multiple of the length of a row.
            runs.append(tensor.as_strided((_RUNS, _RUN), ((count - _RUN) // (_RUNS - 1), 1)))
    if len({tensor.dtype for tensor in tensors}) > 1:
        runs, single = [part.float() for part in runs], [part.float() for part in single]
    if len({tensor.device for tensor in tensors}) > 1:
        runs, single = [part.cpu() for part in runs], [part.cpu() for part in single]
    # Joined before it leaves the device: one transfer instead of one for each tensor.
    joined = [torch.cat(parts).reshape(-1) for parts in (runs, single) if parts]
    return b"".join(part.cpu().view(torch.uint8).numpy().tobytes() for part in joined)


def largest_norm(text_encoder: nn.Module) -> float:
    """The largest norm of a row of the token embedding."""

    def compute() -> float:
        table = weights_of(text_encoder)[table_name(text_encoder)].detach()
        # In parts, because a copy of a whole table in float32 can take gigabytes.
        starts = range(0, len(table), 1 << 14)
        return max(float(table[start : start + (1 << 14)].float().norm(dim=1).max()) for start in starts)

    return remembered(text_encoder).get("largest norm", compute)
