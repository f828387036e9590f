"""Image services as models of `apl-guard generate`, such as `--model a1111:http://127.0.0.1:7860`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from apl_guard.errors import InvalidInput

__all__ = ["Arguments", "find_service", "given"]

KEY_VARIABLE = "APL_GUARD_API_KEY"

Arguments = Callable[[str], tuple[tuple[Any, ...], dict[str, Any]]]
"""Prompt → the arguments of a call that draws it, positional ones and those by name."""


def find_service(
    model: str, checkpoint: str | None, insecure_http: bool, *, seed: int, steps: int | None, guidance: float | None
) -> tuple[Any, Arguments] | None:
    """The client for a service, and how it is called.

    Args:
        model: `KIND:URL`, with the kind `a1111`, `comfyui` or `openai`. Anything else is no service.
        checkpoint: The checkpoint that the prefix was made for, or the model of a hosted service.
        insecure_http: Permit `http://` to another machine.
        seed: Seed of every picture.
        steps: Denoising steps, or None for the service's own.
        guidance: Guidance scale, or None for the service's own.

    Returns:
        Client and arguments, or None where the model is no service.

    Raises:
        InvalidInput: The URL has another form, or the checkpoint is missing.
        ExtraMissing: httpx is not installed.
    """
    kind, _, url = model.partition(":")
    if kind not in ("a1111", "comfyui", "openai") or "://" not in url:
        return None
    if kind != "a1111" and checkpoint is None:
        what = "the file of the checkpoint that the prefix was made for" if kind == "comfyui" else "the service's model"
        raise InvalidInput(f"expected {what}", where="--checkpoint")
    if kind == "a1111":
        from apl_guard.adapters.a1111 import A1111

        fields = given(seed=seed, steps=steps, cfg_scale=guidance)
        return A1111(url, checkpoint=checkpoint, insecure_http=insecure_http), lambda prompt: ((prompt,), fields)
    if kind == "comfyui":
        from apl_guard.adapters.comfyui import ComfyUI, text_to_image

        options = given(seed=seed, steps=steps, cfg=guidance)
        client = ComfyUI(url, models=[str(checkpoint)], insecure_http=insecure_http)
        return client, lambda prompt: ((text_to_image(str(checkpoint), prompt, **options),), {})
    from apl_guard.adapters.openai_images import OpenAIImages

    # Many services take none of these, so what was not asked for is not sent.
    fields = given(seed=seed or None, num_inference_steps=steps, guidance_scale=guidance)
    key = os.environ.get(KEY_VARIABLE)
    return OpenAIImages(url, key, str(checkpoint), insecure_http=insecure_http), lambda prompt: ((prompt,), fields)


def given(**options: Any) -> dict[str, Any]:
    """The options that have a value."""
    return {name: value for name, value in options.items() if value is not None}
