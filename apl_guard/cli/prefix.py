"""`apl-guard prefix`: the prefixes that the guard can find."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from apl_guard.acceptance import Acceptance
from apl_guard.errors import InvalidInput, StorageFailed
from apl_guard.exchange import Embedding, bind, convert_pickle, from_embedding, is_pickle, to_embedding
from apl_guard.registry import PrefixRegistry, RegistryEntry
from apl_guard.storage import write_file
from apl_guard.tensorfile import printable, read_file

__all__ = ["app"]

app = typer.Typer(
    help="Register prefixes, look at them, sign and share them, exchange them with other programs.",
    epilog="A registry is a folder, a URL such as s3://bucket/prefixes, or owner/name on the Hugging Face hub. "
    "docs/registry.md describes it.",
    no_args_is_help=True,
)

_Registry = Annotated[
    str | None,
    typer.Option(
        help="The registry: a folder, a URL, or owner/name on the hub.",
        envvar="APL_GUARD_REGISTRY",
        show_default="in the user's data folder",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Signers = Annotated[
    list[Path] | None,
    typer.Option("--signer", help="A public key in PEM, one of which must have signed. Can be repeated."),
]

_Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--key", help="SLOT=KEY, the key of a slot's tensor in the file. Can be repeated.", show_default="auto"
    ),
]


@app.command(no_args_is_help=True)
def register(
    folder: Annotated[Path, typer.Argument(help="The prefix folder that `apl-guard train` wrote.")],
    name: Annotated[str | None, typer.Option(help="What to call it.", show_default="its own name")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Make it the next version of another prefix of this name.")
    ] = False,
    registry: _Registry = None,
) -> None:
    """Check a prefix and copy it to where the guard finds it.

    Example: apl-guard prefix register prefixes/sd15
    """
    entry = PrefixRegistry(registry).register(folder, name, replace=replace)
    typer.echo(f"registered {_line(entry)}\n  in {entry.path}")


@app.command("list")
def list_prefixes(
    registry: _Registry = None,
    every: Annotated[bool, typer.Option("--all", help="Older versions too.")] = False,
    as_json: _Json = False,
) -> None:
    """List the registered prefixes, and the one that is shipped.

    Example: apl-guard prefix list --all
    """
    found = PrefixRegistry(registry)
    entries = found.list()
    if every:
        entries = tuple(old for entry in entries for old in found.history(entry.name) or (entry,))
    revoked = found.revoked()
    if as_json:
        typer.echo(json.dumps([_described(entry) for entry in entries], indent=2))
        return
    for entry in entries:
        reason = revoked.get(entry.prefix.digest) if entry.prefix else None
        typer.echo(_line(entry) + ("" if reason is None else f"  REVOKED  {printable(reason)}"))
    if not entries:
        typer.echo(f"none in {found.root}; register one with: apl-guard prefix register PREFIX")


@app.command(no_args_is_help=True)
def show(
    prefix: Annotated[str, typer.Argument(help="A name in the registry, a prefix folder, or 'minifaces'.")],
    registry: _Registry = None,
    as_json: _Json = False,
) -> None:
    """Show what is known about a prefix.

    Example: apl-guard prefix show minifaces
    """
    entry = PrefixRegistry(registry).open(prefix)
    loaded = entry.prefix
    assert loaded is not None  # `open` raises otherwise
    metadata = loaded.metadata
    if as_json:
        about = {"path": str(entry.path), "version": entry.version, "digest": loaded.digest}
        typer.echo(json.dumps(about | metadata.model_dump(mode="json")))
        return
    version = f"\n  version  {entry.version}" if entry.version else ""
    typer.echo(f"{metadata.name}\n  path     {entry.path}{version}\n  digest   {loaded.digest}")
    typer.echo(f"  created  {metadata.created}\n  signed   {'no' if entry.signature is None else 'yes'}")
    for slot, width in metadata.widths.items():
        kind = f" ({metadata.traits[slot].kind})" if metadata.traits else ""
        typer.echo(
            f"  {slot}: {loaded.n} vectors of width {width}, for encoder {metadata.fingerprints[slot].key}{kind}"
        )
    for key, value in metadata.evaluation.items():
        typer.echo(f"  {printable(key)}: {json.dumps(value)}")


@app.command(no_args_is_help=True)
def verify(
    name: Annotated[str, typer.Argument(help="A name in the registry, a prefix folder, or 'minifaces'.")],
    signer: _Signers = None,
    registry: _Registry = None,
) -> None:
    """Read a prefix again and check all of it: file, version, list of revoked ones, signature.

    Exit codes: 0 all of it holds, 2 damaged or not there, 4 revoked, rolled back, unsigned or wrongly signed.
    Without --signer a signature is not looked at, and the line says so.

    Example: apl-guard prefix verify sd15 --signer publisher.pub
    """
    found = PrefixRegistry(registry)
    entry = found.open(name)
    found.check(entry, Acceptance(signers=_read_keys(signer)))
    about = "" if signer else "  (signature not checked)"
    typer.echo(f"ok {_line(entry)}{about}")


@app.command(no_args_is_help=True)
def sign(
    name: Annotated[str, typer.Argument(help="A name in the registry.")],
    key: Annotated[Path, typer.Option(help="The private key, in PEM, on an elliptic curve.")],
    password: Annotated[
        str | None, typer.Option(help="Of the key.", envvar="APL_GUARD_KEY_PASSWORD", show_default="none")
    ] = None,
    registry: _Registry = None,
) -> None:
    """Sign the version in use of a registered prefix, in the format of OpenSSF Model Signing.

    Make a pair of keys with:

    openssl ecparam -name prime256v1 -genkey -noout -out publisher.pem

    openssl ec -in publisher.pem -pubout -out publisher.pub

    Put the public one into the policy, under `spec: {prefix: {signers: [...]}}`; then nothing else is accepted.

    Example: apl-guard prefix sign sd15 --key publisher.pem
    """
    entry = PrefixRegistry(registry).sign(name, key, password)
    typer.echo(f"signed {_line(entry)}")


@app.command(no_args_is_help=True)
def revoke(
    prefix: Annotated[str, typer.Argument(help="A name in the registry, or a digest of 64 hexadecimal digits.")],
    reason: Annotated[str, typer.Option(help="For those who will ask.")],
    registry: _Registry = None,
) -> None:
    """Put a prefix on the list of those that no guard must use any more. There is no way back.

    A guard that uses this registry refuses it before the next image; one that uses a copy, at its next look.

    Example: apl-guard prefix revoke sd15 --reason "draws Mara Westgate from behind"
    """
    found = PrefixRegistry(registry)
    digest = prefix if re.fullmatch("[0-9a-f]{64}", prefix) else found.get(prefix).digest
    found.revoke(digest, reason)
    typer.echo(f"revoked {digest}")


@app.command(no_args_is_help=True)
def pull(
    source: Annotated[str, typer.Argument(help="A registry: a folder, a URL, or owner/name on the hub.")],
    name: Annotated[str, typer.Argument(help="Which prefix.")],
    signer: _Signers = None,
    registry: _Registry = None,
) -> None:
    """Copy a prefix from another registry into this one, with its version and signature, after checking it.

    Revocations of this prefix and its older versions come along.

    Example: apl-guard prefix pull acme/prefixes sd15 --signer publisher.pub
    """
    there = PrefixRegistry(source)
    there.refresh()
    entry = there.verify(name)
    there.check(entry, Acceptance(signers=_read_keys(signer)))
    here = PrefixRegistry(registry)
    # Only those of this name, or a stranger's list could revoke whatever is registered here.
    ours = {old.prefix.digest for old in (*there.history(name), *here.history(name)) if old.prefix}
    for digest, reason in there.revoked().items():
        if digest in ours:
            here.revoke(digest, reason)
    typer.echo(f"pulled {_line(here.adopt(entry))}")


@app.command(no_args_is_help=True)
def push(
    name: Annotated[str, typer.Argument(help="A name in the registry.")],
    target: Annotated[str, typer.Argument(help="A registry: a folder, a URL, or owner/name on the hub.")],
    registry: _Registry = None,
) -> None:
    """Copy the version in use of a prefix to another registry, with its signature and the revocations known here.

    Example: apl-guard prefix push sd15 s3://bucket/prefixes
    """
    here = PrefixRegistry(registry)
    entry = here.verify(name)
    here.check(entry, Acceptance())
    here.publish(entry, target)
    typer.echo(f"pushed {_line(entry)}\n  to {target}")


@app.command("export", no_args_is_help=True)
def export_embedding(
    prefix: Annotated[str, typer.Argument(help="A name in the registry, a prefix folder, or 'minifaces'.")],
    output: Annotated[Path, typer.Option(help="A file that ends in .safetensors, or a folder to put it in.")],
    key: _Keys = None,
    registry: _Registry = None,
) -> None:
    """Write a prefix as an embedding for diffusers, AUTOMATIC1111, Forge or ComfyUI.

    The file goes into the server's folder `embeddings`; its name is what is typed in a prompt. In a folder it is named
    after the prefix's digest, which is the name that apl-guard's adapters for these servers look for. Keys are
    `emb_params` for one text encoder, else `clip_l`, `clip_g` and `t5xxl`.

    Example: apl-guard prefix export sd15 --output stable-diffusion-webui/embeddings
    """
    found = PrefixRegistry(registry)
    loaded = found.check(found.open(prefix), Acceptance())
    content = to_embedding(loaded, _read_pairs(key))
    file = output if output.suffix == ".safetensors" else output / f"{loaded.embedding_name}.safetensors"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageFailed(error.strerror or "cannot be made", path=file.parent) from error
    write_file(file, content)
    typer.echo(f"exported {loaded.n} vectors\n  to {file}")


@app.command("import", no_args_is_help=True)
def import_embedding(
    file: Annotated[Path, typer.Argument(help="A .safetensors, .pt, .bin or .ckpt embedding.")],
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
    """Make a prefix of an embedding: an export, a textual inversion, or the file of the paper's authors.

    A file in torch's pickle format is converted by another process of limited time and memory, which accepts tensors
    and nothing else; it is never unpickled in this one.

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


def _read_keys(paths: list[Path] | None) -> tuple[str, ...]:
    keys: list[str] = []
    for path in paths or ():
        try:
            text = path.read_text(encoding="ascii")
            Acceptance(signers=(text,))
        except (OSError, ValueError) as error:
            raise InvalidInput("cannot be read as a public key in PEM", where=path) from error
        keys.append(text)
    return tuple(keys)


def _line(entry: RegistryEntry) -> str:
    version = f"  version {entry.version}" if entry.version else ""
    if entry.prefix is None:
        return f"{entry.name}{version}  DAMAGED  {entry.problem}"
    prefix = entry.prefix
    encoders = ", ".join(f"{slot} {found.key}" for slot, found in prefix.metadata.fingerprints.items())
    signed = "" if entry.signature is None else "  signed"
    return f"{entry.name}{version}  {prefix.n} vectors  digest {prefix.digest[:12]}{signed}  for {encoders}"


def _described(entry: RegistryEntry) -> dict[str, object]:
    described: dict[str, object] = {
        "name": entry.name,
        "version": entry.version,
        "path": str(entry.path),
        "problem": entry.problem,
    }
    if entry.prefix is not None:
        described |= {
            "digest": entry.prefix.digest,
            "signed": entry.signature is not None,
            "metadata": entry.prefix.metadata.model_dump(mode="json"),
        }
    return described
