"""`apl-guard prefix export | import`: prefixes as embeddings of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apl_guard.errors import InvalidInput
from apl_guard.exchange import Embedding, bind, convert_pickle, from_embedding, is_pickle, to_embedding
from apl_guard.policy.acceptance import Acceptance
from apl_guard.prefix.tensorfile import read_file
from apl_guard.registry import PrefixRegistry
from apl_guard.storage import make_folder, write_file

__all__ = ["Registry", "export_embedding", "import_embedding"]

Registry = Annotated[
    str | None,
    typer.Option(
        help="The registry: a folder, a URL, or owner/name on the hub.",
        envvar="APL_GUARD_REGISTRY",
        show_default="in the user's data folder",
    ),
]
_Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        help="The key of a slot's tensor in the file. May be repeated.",
        metavar="SLOT=KEY",
        show_default="auto",
    ),
]


def export_embedding(
    prefix: Annotated[
        str, typer.Argument(help="A name in the registry, a prefix folder, or 'minifaces'.", metavar="PREFIX")
    ],
    output: Annotated[Path, typer.Option(help="A file that ends in .safetensors, or a folder to put it in.")],
    key: _Keys = None,
    registry: Registry = None,
) -> None:
    """Write a prefix as an embedding for diffusers, AUTOMATIC1111, Forge or ComfyUI.

    Put the file into the server's folder `embeddings`; its name is what one types in a prompt. If --output is a folder,
    the file is named after the prefix's digest, which is the name that the adapters for these servers look for. Keys
    are `emb_params` for one text encoder, else `clip_l`, `clip_g` and `t5xxl`.

    Example: apl-guard prefix export sd15 --output stable-diffusion-webui/embeddings
    """
    found = PrefixRegistry(registry)
    loaded = found.check(found.open(prefix), Acceptance())
    content = to_embedding(loaded, _read_pairs(key))
    file = output if output.suffix == ".safetensors" else output / f"{loaded.embedding_name}.safetensors"
    make_folder(file.parent)
    write_file(file, content)
    typer.echo(f"exported {loaded.n} vectors\n  to {file}")


def import_embedding(
    file: Annotated[Path, typer.Argument(help="A .safetensors, .pt, .bin or .ckpt embedding.", metavar="FILE")],
    output: Annotated[Path, typer.Option(help="The prefix folder to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="The model that it was trained with: folder, hub id, or 'minifaces'. Not needed for an export."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call it.", show_default="the output folder")] = None,
    key: _Keys = None,
) -> None:
    """Make a prefix from an embedding: an export, a textual inversion, or the file of the paper's authors.

    A file in torch's pickle format is converted by another process with limited time and memory, which accepts tensors
    and nothing else. This process never unpickles.

    Example: apl-guard prefix import apl.pt --model runwayml/stable-diffusion-v1-5 --output prefixes/authors
    """
    content = read_file(file, limit=16 << 20)
    found = from_embedding(convert_pickle(file) if is_pickle(content) else content, where=file)
    if isinstance(found, Embedding):
        if model is None:
            raise InvalidInput(
                f"{file.name} does not say which text encoder it is for; name the model that it was trained with",
                where="--model",
            )
        from apl_guard.cli.generate import open_model

        found = bind(found, open_model(model), name or output.resolve().name, _read_pairs(key))
    elif name is not None and name != found.metadata.name:
        raise InvalidInput(
            f"the export is of prefix '{found.metadata.name}' and stays so; register it under another name",
            where="--name",
        )
    found.save(output)
    typer.echo(f"imported {found.n} vectors  digest {found.digest[:12]}\n  to {output}")


def _read_pairs(pairs: list[str] | None) -> dict[str, str] | None:
    if pairs is None:
        return None
    found = dict(pair.partition("=")[::2] for pair in pairs)
    if len(found) != len(pairs) or not all(found) or not all(found.values()):
        raise InvalidInput("expected SLOT=KEY, such as text_encoder_2=clip_g, each slot once", where="--key")
    return found
