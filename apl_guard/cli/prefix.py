"""`apl-guard prefix`: the prefixes that the guard can find."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from apl_guard.cli.options import Json
from apl_guard.cli.prefix_exchange import Registry, export_embedding, import_embedding
from apl_guard.errors import InvalidInput, PrefixRevoked
from apl_guard.policy.acceptance import Acceptance
from apl_guard.prefix.places import SHIPPED_NAME
from apl_guard.printable import printable
from apl_guard.registry import PrefixRegistry, RegistryEntry
from apl_guard.registry.source import without_user
from apl_guard.storage import read_regular

__all__ = ["app"]

_MAX_KEY_BYTES = 10_000

app = typer.Typer(
    help="Register, show, sign and share prefixes, and exchange them with other programs.",
    epilog="A registry is a folder, a URL such as s3://bucket/prefixes, or owner/name on the Hugging Face hub. "
    "docs/registry.md describes it.",
    no_args_is_help=True,
)

_Signers = Annotated[
    list[Path] | None,
    typer.Option(
        "--signer", help="A public key in PEM; one of those given must have signed. May be repeated.", metavar="<path>"
    ),
]


@app.command(no_args_is_help=True)
def register(
    folder: Annotated[Path, typer.Argument(help="The prefix folder that `apl-guard train` wrote.", metavar="FOLDER")],
    name: Annotated[str | None, typer.Option(help="What to call it.", show_default="its own name")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Register it as the next version of a different prefix of this name.")
    ] = False,
    registry: Registry = None,
) -> None:
    """Check a prefix and copy it to where the guard finds it.

    Example: apl-guard prefix register prefixes/sd15
    """
    entry = PrefixRegistry(registry).register(folder, name, replace=replace)
    typer.echo(f"registered {_line(entry)}\n  in {entry.path}")


@app.command("list")
def list_prefixes(
    registry: Registry = None,
    every: Annotated[bool, typer.Option("--all", help="Older versions too.")] = False,
    as_json: Json = False,
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
        typer.echo(json.dumps([_described(entry, revoked) for entry in entries], indent=2))
        return
    for entry in entries:
        reason = _why_revoked(entry, revoked)
        typer.echo(_line(entry) + ("" if reason is None else f"  REVOKED  {printable(reason, None)}"))
    if all(entry.name == SHIPPED_NAME for entry in entries):
        typer.echo(f"none in {found.root}; register one with: apl-guard prefix register PREFIX")


@app.command(no_args_is_help=True)
def show(
    prefix: Annotated[
        str, typer.Argument(help="A name in the registry, a prefix folder, or 'minifaces'.", metavar="PREFIX")
    ],
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Show what a prefix says about itself.

    Example: apl-guard prefix show minifaces
    """
    found = PrefixRegistry(registry)
    entry = found.open(prefix)
    loaded = entry.whole
    metadata = loaded.metadata
    reason = _why_revoked(entry, found.revoked())
    if as_json:
        about = {"path": str(entry.path), "version": entry.version, "digest": loaded.digest, "revoked": reason}
        typer.echo(json.dumps(about | metadata.model_dump(mode="json")))
        return
    version = f"\n  version  {entry.version}" if entry.version else ""
    made_as = "" if metadata.name == entry.name else f"  (made as {metadata.name})"
    typer.echo(f"{entry.name}{made_as}\n  path     {entry.path}{version}\n  digest   {loaded.digest}")
    typer.echo(
        f"  created  {metadata.created:%Y-%m-%d %H:%M %Z}\n  signed   {'no' if entry.signature is None else 'yes'}"
    )
    if reason is not None:
        typer.echo(f"  REVOKED  {printable(reason, None)}")
    for slot, width in metadata.widths.items():
        kind = f" ({metadata.traits[slot].kind})" if metadata.traits else ""
        typer.echo(
            f"  {slot}: {loaded.n} vectors of width {width}, for encoder {metadata.fingerprints[slot].key}{kind}"
        )
    for key, value in metadata.evaluation.items():
        shown = f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
        typer.echo(f"  {printable(key.replace('_', ' '))}: {shown}")


@app.command(no_args_is_help=True)
def verify(
    name: Annotated[
        str, typer.Argument(help="A name in the registry, a prefix folder, or 'minifaces'.", metavar="PREFIX")
    ],
    signer: _Signers = None,
    registry: Registry = None,
) -> None:
    """Check a prefix completely: file, version, revocations, signature.

    Exit codes: 0 valid, 2 damaged or missing, 4 revoked, rolled back, unsigned or wrongly signed. Without --signer
    the signature is not checked, and the output says so.

    Example: apl-guard prefix verify sd15 --signer publisher.pub
    """
    found = PrefixRegistry(registry)
    entry = found.open(name)
    found.check(entry, Acceptance(signers=_read_keys(signer)))
    about = "" if signer else "  (signature not checked)"
    typer.echo(f"ok {_line(entry)}{about}")


@app.command(no_args_is_help=True)
def sign(
    name: Annotated[str, typer.Argument(help="A name in the registry.", metavar="NAME")],
    key: Annotated[Path, typer.Option(help="The private key, in PEM, on an elliptic curve.")],
    password: Annotated[
        str | None, typer.Option(help="Password of the key.", envvar="APL_GUARD_KEY_PASSWORD", show_default="none")
    ] = None,
    registry: Registry = None,
) -> None:
    """Sign the version in use of a registered prefix, in the format of OpenSSF Model Signing.

    Make a pair of keys with:

    openssl ecparam -name prime256v1 -genkey -noout -out publisher.pem

    openssl ec -in publisher.pem -pubout -out publisher.pub

    Put the public key into the policy, under `spec: {prefix: {signers: [...]}}`; then nothing else is accepted.

    Example: apl-guard prefix sign sd15 --key publisher.pem
    """
    entry = PrefixRegistry(registry).sign(name, key, password)
    typer.echo(f"signed {_line(entry)}")


@app.command(no_args_is_help=True)
def revoke(
    prefix: Annotated[
        str, typer.Argument(help="A name in the registry, or a digest of 64 hexadecimal digits.", metavar="PREFIX")
    ],
    reason: Annotated[str, typer.Option(help="Why, for those who will ask.")],
    registry: Registry = None,
) -> None:
    """Revoke a prefix, so that no guard uses it any more. This cannot be undone.

    A guard that uses this registry refuses it before the next image; one that uses a copy, at its next check. For a
    registry behind a URL you need the right to write there.

    Example: apl-guard prefix revoke sd15 --reason "draws Mara Westgate from behind"
    """
    found = PrefixRegistry(registry)
    digest = prefix if re.fullmatch("[0-9a-f]{64}", prefix) else found.get(prefix).digest
    before = found.revoked().get(digest)
    if before is not None:
        typer.echo(f"was revoked before: {digest}  {printable(before, None)}")
        return
    found.revoke(digest, reason)
    typer.echo(f"revoked {digest}")


@app.command(no_args_is_help=True)
def pull(
    source: Annotated[
        str, typer.Argument(help="A registry: a folder, a URL, or owner/name on the hub.", metavar="SOURCE")
    ],
    name: Annotated[str, typer.Argument(help="Name of the prefix.", metavar="NAME")],
    signer: _Signers = None,
    registry: Registry = None,
) -> None:
    """Copy a prefix from another registry into this one, with its version and signature, after checking it.

    Revocations of this prefix and its older versions are copied too, even if the prefix itself is refused.

    Example: apl-guard prefix pull acme/prefixes sd15 --signer publisher.pub
    """
    acceptance = Acceptance(signers=_read_keys(signer))
    there = PrefixRegistry(source)
    there.refresh()
    entry = there.verify(name)
    here = PrefixRegistry(registry)
    # Only those of this name, or a stranger's list could revoke whatever is registered here.
    ours = {old.prefix.digest for old in (*there.history(name), *here.history(name)) if old.prefix}
    for digest, reason in there.revoked().items():
        if digest in ours:
            here.revoke(digest, reason)
    there.check(entry, acceptance)
    typer.echo(f"pulled {_line(here.adopt(entry))}")


@app.command(no_args_is_help=True)
def push(
    name: Annotated[str, typer.Argument(help="A name in the registry.", metavar="NAME")],
    target: Annotated[
        str, typer.Argument(help="A registry: a folder, a URL, or owner/name on the hub.", metavar="TARGET")
    ],
    registry: Registry = None,
) -> None:
    """Copy the version in use of a prefix to another registry, with its signature and the revocations known here.

    Of a revoked prefix only the revocation is copied. A prefix that is already there gets its signature.

    Example: apl-guard prefix push sd15 s3://bucket/prefixes
    """
    here = PrefixRegistry(registry)
    entry = here.verify(name)
    try:
        here.check(entry, Acceptance())
    except PrefixRevoked as error:
        here.publish_revoked(target)
        typer.echo(f"pushed what is revoked, and no prefix: {error}\n  to {without_user(target)}")
        return
    here.publish(entry, target)
    typer.echo(f"pushed {_line(entry)}\n  to {without_user(target)}")


def _read_keys(paths: list[Path] | None) -> tuple[str, ...]:
    keys: list[str] = []
    for path in paths or ():
        try:
            text = read_regular(path, _MAX_KEY_BYTES).decode("ascii")
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


def _why_revoked(entry: RegistryEntry, revoked: Mapping[str, str]) -> str | None:
    return revoked.get(entry.prefix.digest) if entry.prefix else None


def _described(entry: RegistryEntry, revoked: Mapping[str, str]) -> dict[str, object]:
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
            "revoked": _why_revoked(entry, revoked),
            "metadata": entry.prefix.metadata.model_dump(mode="json"),
        }
    return described


app.command("export", no_args_is_help=True)(export_embedding)
app.command("import", no_args_is_help=True)(import_embedding)
