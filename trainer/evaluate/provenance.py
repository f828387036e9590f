"""What it takes to do an evaluation again: versions, digests, machine, command."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
from typing import Any

from apl_guard.encoder.fingerprint import fingerprint
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.model.pipeline import model_digest

_PACKAGES = ("apl-guard", "torch", "diffusers", "transformers", "numpy", "scipy", "torchmetrics", "onnxruntime")


def versions() -> dict[str, str]:
    """Of Python and of every package that figures depend on, where it is installed.

    Example:
        >>> {"python", "torch"} <= versions().keys()
        True
    """
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def provenance(setting: Setting) -> dict[str, Any]:
    """Digests of the model, of the prefix, of the policy and of who judges, and on what it was done."""
    family = family_of(setting.pipe)
    return {
        "model": model_digest(setting.pipe),
        **{slot: str(fingerprint(*part)) for slot, part in family.parts.items()},
        "prefix": setting.prefix.digest,
        "policy": f"{setting.guard.policy.name} {setting.guard.policy.digest}",
        "judges": setting.judges.digest,
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}, {family.device.type}",
    }


def command() -> str:
    """The command that runs now, as one could type it again. Bytes of a path that are no text are written out."""
    return shlex.join(["apl-guard", *sys.argv[1:]]).encode(errors="backslashreplace").decode()
