"""Opening the model that is trained on or judged, and the state it has to be in while that happens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch

from apl_guard.adapters.diffusers.load import load_pipe
from apl_guard.adapters.diffusers.view import encoders_of
from apl_guard.errors import ConfigInvalid, InvalidInput
from apl_guard.prefix.places import SHIPPED_NAME, shipped_world
from apl_guard.trainer.model.families import check_family, family_of
from apl_guard.trainer.model.number_format import precision_of


def find_device(wish: Literal["auto", "cpu", "cuda"] = "auto") -> torch.device:
    """The device to compute on: the wish, or a GPU where there is one.

    Raises:
        ConfigInvalid: A GPU is wished for, and torch finds none.
    """
    has_gpu = torch.cuda.is_available()
    if wish == "cuda" and not has_gpu:
        raise ConfigInvalid("found no GPU that this torch can use; expected one, or auto or cpu", where="device")
    return torch.device("cuda" if has_gpu and wish == "auto" else "cpu" if wish == "auto" else wish)


def check_steps(pipe: Any, steps: int, where: str = "steps") -> None:
    """Make sure that a model can draw in so many steps.

    Raises:
        InvalidInput: It was trained with fewer noise levels.

    Example:
        >>> from apl_guard.testing import tiny_pipe
        >>> check_steps(tiny_pipe(), 2000)
        Traceback (most recent call last):
        apl_guard.errors.InvalidInput: steps: found 2000; expected at most 1000, the noise levels of this model
    """
    levels = pipe.scheduler.config.get("num_train_timesteps")
    if levels is not None and steps > levels:
        raise InvalidInput(f"found {steps}; expected at most {levels}, the noise levels of this model", where=where)


def open_pipe(
    model: str | Path | Any,
    device: torch.device | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "float32",
) -> Any:
    """Open a pipeline of a family that can be trained on, in float32.

    Text encoders are in float32 always: rounded they would be others, and a prefix for them of no use to the published.

    Args:
        model: A folder in the format of diffusers, an id on the Hugging Face hub, `minifaces` for the shipped
            model, or a pipe that is open already (it is returned as it is).
        device: Where to put it; default `find_device()`.
        precision: Of a transformer, which is too large to be kept in float32 and computed in another format. UNets
            are kept in float32 whatever they compute in.

    Raises:
        ModelInvalid: The folder is missing or half-written, the hub is out of reach, or the pipeline is of no family
            that can be trained on.
    """
    if not isinstance(model, (str, Path)):
        check_family(model, type(model).__name__)
        return model
    if str(model) == SHIPPED_NAME and not Path(model).exists() and (world := shipped_world()) is not None:
        model = world / "base"
    pipe = load_pipe(model)
    pipe.set_progress_bar_config(disable=True)
    check_family(pipe, str(model))
    device = device or find_device()
    for name, part in pipe.components.items():
        dtype = precision_of(device, precision) if name == "transformer" else torch.float32
        # Only where it must be: diffusers warns of every cast.
        if isinstance(part, torch.nn.Module) and any(weight.dtype != dtype for weight in part.parameters()):
            part.to(dtype)
    return pipe.to(device)


def with_parts(pipe: Any, **parts: Any) -> Any:
    """A pipe with some parts of its own; it shares all others with the one it is made of."""
    return type(pipe)(**pipe.components | parts, requires_safety_checker=False)


def model_digest(pipe: Any) -> str:
    """The SHA-256 of what makes the images of a pipe: all weights, how strongly adapters act, the schedule, and what
    SDXL takes for an empty negative prompt."""
    family = family_of(pipe)
    digest = hashlib.sha256(b"apl-guard model 1\0")
    for part in family.part_names:
        for name, tensor in sorted(getattr(pipe, part).state_dict().items()):
            digest.update(f"{part}.{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for e in encoders_of(pipe):
        digest.update(json.dumps(sorted(e.tokenizer.get_vocab().items())).encode())
    scheduler = {key: str(value) for key, value in pipe.scheduler.config.items() if key[0] != "_"}
    digest.update(json.dumps([type(pipe.scheduler).__name__, scheduler], sort_keys=True).encode())
    if strengths := _adapter_strengths(pipe, family.part_names):
        digest.update(json.dumps(strengths, sort_keys=True).encode())
    for beside in family.beside_weights:
        digest.update(json.dumps(beside).encode())
    return digest.hexdigest()


def _adapter_strengths(pipe: Any, parts: tuple[str, ...]) -> list[Any]:
    """How strongly adapters such as LoRA act, which their weights do not say."""
    found: list[Any] = []
    for part in parts:
        for name, module in getattr(pipe, part).named_modules():
            scaling = getattr(module, "scaling", None)
            if isinstance(scaling, Mapping):
                state = [list(module.active_adapters), module.disable_adapters, module.merged_adapters]
                found.append([part, name, {key: float(value) for key, value in scaling.items()}, state])
    return found


@contextmanager
def frozen(pipe: Any, gradient_checkpointing: bool = False) -> Iterator[None]:
    """Hold the pipe still while gradients flow through it: no weight learns, no dropout, fast attention.

    All is put back at the end.
    """
    family = family_of(pipe)
    modules = [getattr(pipe, name) for name in family.part_names]
    was_training = [(m, m.training) for module in modules for m in module.modules()]
    learned = [p for m in modules for p in m.parameters() if p.requires_grad]
    for module in modules:
        module.eval()
        module.requires_grad_(False)
    try:
        with family.quick(), family.checkpointing() if gradient_checkpointing else nullcontext():
            yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)
        for module, training in was_training:
            module.training = training
