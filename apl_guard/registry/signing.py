"""Signatures over the folder of a prefix, in the format of OpenSSF Model Signing, with elliptic-curve keys.

A key pair is made with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem
                         openssl ec -in key.pem -pubout -out key.pub
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apl_guard.errors import ExtraMissing, InvalidInput, PrefixSignatureInvalid, PrefixUnsigned
from apl_guard.prefix.layout import SIGNATURE_NAME
from apl_guard.printable import printable
from apl_guard.storage import write_file

__all__ = ["sign_folder", "verify_files"]


def sign_folder(folder: Path, files: Mapping[str, bytes], key: Path, password: str | None = None) -> Path:
    """Sign files and put the signature into their folder.

    Args:
        folder: Where the signature goes.
        files: Name → content of all that is signed.
        key: A private key on an elliptic curve, in PEM.
        password: Of the key, if it has one.

    Returns:
        The signature's file.

    Raises:
        InvalidInput: The key cannot be read.
        ExtraMissing: `apl-guard[signing]` is not installed.
        StorageFailed: The signature could not be written.
    """
    signing = _model_signing().signing
    with tempfile.TemporaryDirectory(prefix="apl-guard-") as place:
        copied = _put(files, Path(place, "prefix"))
        try:
            config = signing.Config().use_elliptic_key_signer(private_key=key, password=password)
        except Exception as error:  # whatever the libraries below say about a key
            reason = printable(str(error) or type(error).__name__, 200)
            raise InvalidInput(
                f"cannot be used as a private key ({reason}); expected one on an elliptic curve, in PEM", where=key
            ) from error
        config.sign(copied, Path(place, SIGNATURE_NAME))
        return write_file(folder / SIGNATURE_NAME, Path(place, SIGNATURE_NAME).read_bytes())


def verify_files(files: Mapping[str, bytes], signature: bytes | None, signers: Sequence[str], where: Path) -> None:
    """Make sure that one of the signers signed exactly these files.

    Args:
        files: Name → content. They are verified as they are here, not as they are on disk.
        signature: Content of the signature's file, or None where there is none.
        signers: Public keys in PEM.
        where: The folder, for messages.

    Raises:
        PrefixUnsigned: There is no signature.
        PrefixSignatureInvalid: None of the signers made it, or it is over other content.
        ExtraMissing: `apl-guard[signing]` is not installed.
    """
    if signature is None:
        raise PrefixUnsigned(
            f"{where}: no {SIGNATURE_NAME}, and only signed prefixes are accepted; "
            "sign it with: apl-guard prefix sign NAME --key KEY",
        )
    verifying = _model_signing().verifying
    reasons: list[str] = []
    with tempfile.TemporaryDirectory(prefix="apl-guard-") as place:
        copied = _put(files, Path(place, "prefix"))
        Path(place, SIGNATURE_NAME).write_bytes(signature)
        for number, signer in enumerate(signers):
            key = Path(place, f"{number}.pub")
            key.write_text(signer, encoding="utf-8")
            try:
                config = verifying.Config().use_elliptic_key_verifier(public_key=key)
                config.verify(copied, Path(place, SIGNATURE_NAME))
                _covers_all(signature, files)
                return
            except Exception as error:  # a dozen types for a signature that is not one
                reasons.append(printable(str(error) or type(error).__name__, 200))
    raise PrefixSignatureInvalid(
        f"{where}: the signature is by none of the {len(signers)} accepted signers, or over other content "
        f"({'; '.join(sorted(set(reasons)))}); get the prefix again from its publisher"
    )


def _covers_all(signature: bytes, files: Mapping[str, bytes]) -> None:
    """A signature may say that it leaves files out."""
    payload = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    signed = {resource["name"] for resource in payload["predicate"]["resources"]}
    if signed != set(files):
        raise ValueError(f"it covers {sorted(signed)}, expected {sorted(files)}")


def _put(files: Mapping[str, bytes], folder: Path) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def _model_signing() -> Any:
    try:
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise ExtraMissing("signing", needs=error.name or "model-signing") from error
    return model_signing
