"""`apl-guard generate`: images through the guard, from a shell."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apl_guard.cli.options import Device, PolicyOption, PrefixOption, put_error, seed_option
from apl_guard.cli.services import Arguments, find_service, given
from apl_guard.errors import AplGuardError, InvalidInput, PolicyBlocked
from apl_guard.storage import make_folder, write_file

if TYPE_CHECKING:
    from apl_guard.guard import Guarded

__all__ = ["generate", "open_model", "place"]


def generate(
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts, each in quotes.", metavar="PROMPT")],
    model: Annotated[
        str,
        typer.Option(
            help="Model folder, hub id, or 'minifaces' for the shipped model; or a service: a1111:URL, comfyui:URL or "
            "openai:URL, whose key is read from APL_GUARD_API_KEY."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the images: 000.png, 001.png, …")],
    policy: PolicyOption = "anonymize_faces",
    prefix: PrefixOption = None,
    seed: Annotated[int, seed_option("Seed of every image.")] = 0,
    audit: Annotated[
        Path | None, typer.Option(help="Folder for the records of decisions and outcomes; without it none are kept.")
    ] = None,
    audit_witness: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder, best on another machine, for the checkpoints of the records. May be repeated.",
            metavar="<path>",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.", show_default="the model's")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.", show_default="the model's")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="Of a service: the checkpoint that the prefix was made for, as a hash (a1111) or file (comfyui); "
            "the model (openai)."
        ),
    ] = None,
    insecure_http: Annotated[
        bool, typer.Option("--insecure-http", help="Permit http:// to a service on another machine.")
    ] = False,
    device: Device = None,
) -> None:
    """Generate images under a policy, and print the decision for each prompt.

    Example: apl-guard generate --model minifaces --seed 1 --output out "a photo of a man" "a red car"

    Example: apl-guard generate --model a1111:http://127.0.0.1:7860 --prefix sd15 --output out "a photo of a man"
    """
    from apl_guard.adapters.remote.http_client import RemoteError
    from apl_guard.guard import Guard

    service = find_service(model, checkpoint, insecure_http, seed=seed, steps=steps, guidance=guidance)
    elsewhere = {"--checkpoint": checkpoint, "--insecure-http": insecure_http or None}
    for option, value in (elsewhere if service is None else {"--device": device}).items():
        if value is not None:
            kind = "a service, such as a1111:URL," if service is None else "a model that runs here"
            raise InvalidInput(f"goes with {kind} only; leave it out", where=option)
    pipe, arguments = service or _open_local(model, device, seed, steps, guidance)
    guard = Guard(pipe, policy, prefix=prefix, audit=audit, audit_witness=audit_witness or ())
    make_folder(output)
    blocked = False
    for number, prompt in enumerate(prompts):
        positional, named = arguments(prompt)
        try:
            made = guard.generate(*positional, **named)
        except PolicyBlocked as error:
            blocked = True
            typer.echo(f"{number:03d}  block  {error}")
            continue
        except AplGuardError:
            raise
        except Exception as error:  # the model's own, such as of more steps than it can take
            what = str(error) if isinstance(error, RemoteError) else f"{model} failed ({first_line(error)})"
            put_error(f"error: {what}")
            raise typer.Exit(1) from error
        if not made.output.images:
            put_error(f"error: {model} gave no image for prompt {number}")
            raise typer.Exit(1)
        path = output / f"{number:03d}.png"
        content = io.BytesIO()
        made.output.images[0].save(content, format="PNG")
        write_file(path, content.getvalue())
        typer.echo(f"{number:03d}  {_describe(made)}  {path}")
    if blocked:
        raise typer.Exit(3)


def _open_local(
    model: str, device: str | None, seed: int, steps: int | None, guidance: float | None
) -> tuple[Any, Arguments]:
    """A pipeline in this process, and how it is called."""
    import torch

    pipe = open_model(model)
    pipe.set_progress_bar_config(leave=False)
    place(pipe, device)
    options = given(num_inference_steps=steps, guidance_scale=guidance)
    return pipe, lambda prompt: ((prompt,), {"generator": torch.Generator("cpu").manual_seed(seed), **options})


def place(pipe: Any, device: str | None) -> None:
    """Put a pipe on a device; None takes a GPU if there is one.

    Raises:
        InvalidInput: There is no such device, or the pipe does not fit on it.
    """
    import torch

    try:
        pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError, ValueError) as error:  # as torch says it that was built without CUDA
        raise InvalidInput(first_line(error), where="--device") from error


def first_line(error: Exception) -> str:
    """An error as one line: its type, and how its message begins."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def open_model(name: str) -> Any:
    """Open a pipe from a folder, a hub id, or `minifaces`.

    Raises:
        ModelInvalid: It cannot be opened.
    """
    from apl_guard.adapters.diffusers.load import load_pipe

    if name == "minifaces":
        from apl_guard.trainer import minifaces

        return load_pipe(minifaces.model_path())
    return load_pipe(name)


def _describe(made: Guarded) -> str:
    from apl_guard.decision import Protection

    decision, outcome = made.decision, made.outcome
    text: str = decision.action.value
    if decision.effective != decision.action:
        text += f" (mode {decision.mode.value}: {decision.effective.value})"
    if outcome.prefix is not None and outcome.prefix_digest is not None:
        text += f"  prefix {outcome.prefix} {outcome.prefix_digest[:12]}"
    if outcome.protection in (Protection.UNPROVEN, Protection.MISSING):
        text += f"  protection {outcome.protection.value}"
    cut = sum(sum(counts) for counts in outcome.tokens_cut.values())
    if cut:
        text += f"  {cut} tokens of the prompt did not fit"
    return text
