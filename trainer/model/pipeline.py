"""Opening the model that is trained on or judged, and the state it has to be in while that happens."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from apl_guard.adapters.diffusers_load import load_pipe
from apl_guard.errors import ConfigInvalid, InvalidInput, ModelInvalid
from apl_guard.prefix.places import SHIPPED_NAME, shipped_world
from apl_guard.trainer.model.encoders import Condition, Encoders, is_xl, slots_of

_PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")


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


def open_pipe(model: str | Path | Any, device: torch.device | None = None) -> Any:
    """Open a pipeline of Stable Diffusion or SDXL in float32.

    Args:
        model: A folder in the format of diffusers, an id on the Hugging Face hub, `minifaces` for the shipped
            model, or a pipe that is open already (it is returned as it is).
        device: Where to put it; default `find_device()`.

    Raises:
        ModelInvalid: The folder is missing or half-written, the hub is out of reach, or the pipeline is neither
            of the Stable Diffusion family (one text encoder, a UNet) nor of SDXL's (two).
    """
    if not isinstance(model, (str, Path)):
        return _check_family(model, type(model).__name__)
    if str(model) == SHIPPED_NAME and not Path(model).exists() and (world := shipped_world()) is not None:
        model = world / "base"
    pipe = load_pipe(model)
    pipe.set_progress_bar_config(disable=True)
    pipe = _check_family(pipe, str(model)).to(device or find_device())
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    # Only where it must be: diffusers warns of every cast.
    is_cast = all(weight.dtype == torch.float32 for network in networks for weight in network.parameters())
    return pipe if is_cast else pipe.to(torch.float32)


_EXPECTED = "expected a StableDiffusionPipeline or a StableDiffusionXLPipeline"


def _check_family(pipe: Any, where: str) -> Any:
    for part in _PARTS:
        if getattr(pipe, part, None) is None:
            raise ModelInvalid(f"this pipeline has no {part}; {_EXPECTED}", where=where)
    additions, found = getattr(pipe.unet.config, "addition_embed_type", None), slots_of(pipe)
    if {None: 1, "text_time": 2}.get(additions) != len(found):
        msg = f"this pipeline has {len(found)} text encoder(s) for a UNet that takes {additions or 'no'} additions"
        raise ModelInvalid(f"{msg}; {_EXPECTED}", where=where)
    taken, made = getattr(pipe.unet.config, "in_channels", None), getattr(pipe.vae.config, "latent_channels", None)
    if taken != made:
        # Of inpainting, depth, upscaling: it draws from a picture as well.
        msg = f"this pipeline's UNet takes {taken} channels, its pictures have {made}; {_EXPECTED}"
        raise ModelInvalid(msg, where=where)
    if "image" in inspect.signature(pipe.__call__).parameters:
        raise ModelInvalid(f"{type(pipe).__name__} draws from a picture as well; {_EXPECTED}", where=where)
    side = getattr(pipe.unet.config, "sample_size", None)
    if not isinstance(side, int):
        msg = f"the UNet's sample_size is {side}; expected the side of its square latents, as a whole number"
        raise ModelInvalid(msg, where=where)
    kind = pipe.scheduler.config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise ModelInvalid(f"prediction type '{kind}'; expected epsilon or v_prediction", where=where)
    if getattr(pipe.scheduler, "alphas_cumprod", None) is None:
        # Of EDM and flow matching, whose noise is added by other equations than those of training.
        msg = f"{type(pipe.scheduler).__name__} has no alphas_cumprod; expected a scheduler of Stable Diffusion or SDXL"
        raise ModelInvalid(msg, where=where)
    return pipe


def model_digest(pipe: Any) -> str:
    """The SHA-256 of what makes the images of a pipe: all weights, how strongly adapters act, the schedule, and what
    SDXL takes for an empty negative prompt."""
    digest = hashlib.sha256(b"apl-guard model 1\0")
    second = [s for s in slots_of(pipe) if s != "text_encoder"]
    for part in ("text_encoder", "unet", "vae", *second):
        for name, tensor in sorted(getattr(pipe, part).state_dict().items()):
            digest.update(f"{part}.{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for tokenizer in Encoders(pipe).tokenizers:
        digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    scheduler = {key: str(value) for key, value in pipe.scheduler.config.items() if key[0] != "_"}
    digest.update(json.dumps([type(pipe.scheduler).__name__, scheduler], sort_keys=True).encode())
    if strengths := _adapter_strengths(pipe):
        digest.update(json.dumps(strengths, sort_keys=True).encode())
    if is_xl(pipe):
        digest.update(json.dumps(bool(pipe.config.get("force_zeros_for_empty_prompt"))).encode())
    return digest.hexdigest()


def _adapter_strengths(pipe: Any) -> list[Any]:
    """How strongly adapters such as LoRA act, which their weights do not say."""
    found: list[Any] = []
    for part in (*slots_of(pipe), "unet"):
        for name, module in getattr(pipe, part).named_modules():
            scaling = getattr(module, "scaling", None)
            if isinstance(scaling, Mapping):
                state = [list(module.active_adapters), module.disable_adapters, module.merged_adapters]
                found.append([part, name, {key: float(value) for key, value in scaling.items()}, state])
    return found


@contextmanager
def quick_attention(unet: Any) -> Iterator[None]:
    """The attention whose backward pass is quick on a CPU, where torch's fused one takes two thirds of a step.

    The UNet has its own again at the end.
    """
    from diffusers.models.attention_processor import AttnProcessor

    processors = dict(unet.attn_processors)
    if unet.device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())
    try:
        yield
    finally:
        unet.set_attn_processor(processors)


@contextmanager
def frozen(pipe: Any, gradient_checkpointing: bool = False) -> Iterator[None]:
    """Hold the pipe still while gradients flow through it: no weight learns, no dropout, fast attention.

    All is put back at the end.
    """
    modules = [*(getattr(pipe, slot) for slot in slots_of(pipe)), pipe.unet, pipe.vae]
    was_training = [(m, m.training) for module in modules for m in module.modules()]
    learned = [p for m in modules for p in m.parameters() if p.requires_grad]
    for module in modules:
        module.eval()
        module.requires_grad_(False)
    gradient_checkpointing = gradient_checkpointing and not pipe.unet.is_gradient_checkpointing
    if gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    try:
        with quick_attention(pipe.unet):
            yield
    finally:
        if gradient_checkpointing:
            pipe.unet.disable_gradient_checkpointing()
        for parameter in learned:
            parameter.requires_grad_(True)
        for module, training in was_training:
            module.training = training


def unet_precision(device: torch.device, wish: Literal["auto", "float32", "bfloat16"]) -> torch.dtype:
    """The number format of the UNet's passes: the wish, or bfloat16 where the processor computes in it.

    A step then takes two thirds of the time, and the gradient keeps its direction (cosine 0.9998, measured).
    """
    if wish != "auto":
        return torch.float32 if wish == "float32" else torch.bfloat16
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if fast else torch.float32


def predict(unet: Any, z_t: Tensor, t: Tensor, c: Tensor | Condition, dtype: torch.dtype) -> Tensor:
    """ε(z_t, t, c): one pass of the UNet.

    Args:
        z_t: Noised latents, shape (B, C, H, W).
        t: Noise levels, shape (B,).
        c: What the UNet is told of the prompts, or their embeds alone, shape (B, L, D).
        dtype: What the pass computes in.

    Returns:
        Shape (B, C, H, W), float32.
    """
    cast: AbstractContextManager[Any] = nullcontext()
    if dtype != torch.float32:
        cast = torch.autocast(z_t.device.type, dtype=dtype)
    c = c if isinstance(c, Condition) else Condition(c)
    added = None if c.pooled is None else {"text_embeds": c.pooled, "time_ids": c.sizes}
    with cast:
        eps: Tensor = unet(z_t, t, encoder_hidden_states=c.hidden, added_cond_kwargs=added).sample
    return eps.float()
