"""Keep text-to-image models from drawing real people, by a learned prefix in front of each prompt.

    from diffusers import StableDiffusionPipeline
    from apl_guard import Guard

    pipe = StableDiffusionPipeline.from_pretrained("…")
    guard = Guard(pipe, policy="anonymize_faces")  # finds the registered prefix for the text encoder of pipe
    image = guard("a photo of Mara Voss in a red shirt").images[0]  # same call, same return type as pipe

Importing this package loads neither torch nor diffusers; each name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from apl_guard._version import __version__

if TYPE_CHECKING:
    from apl_guard.adapters.a1111 import A1111
    from apl_guard.adapters.comfyui import ComfyUI
    from apl_guard.adapters.openai_images import OpenAIImages
    from apl_guard.audit import AuditLog, Outcome
    from apl_guard.decision import Decision, decide
    from apl_guard.detect.gallery import Gallery
    from apl_guard.detect.leaks import LeakWatch
    from apl_guard.detect.output import OutputCheck
    from apl_guard.encoder.fingerprint import Fingerprint
    from apl_guard.errors import (
        AplGuardError,
        AuditUnavailable,
        ConfigInvalid,
        DetectorFailed,
        ExtraMissing,
        GuardUnavailable,
        IdentitiesInvalid,
        InvalidInput,
        MetricsUnavailable,
        ModelInvalid,
        OutputCheckFailed,
        OutputWithheld,
        PolicyBlocked,
        PolicyInvalid,
        PrefixInvalid,
        PrefixNotApplied,
        PrefixNotFound,
        PrefixNotPinned,
        PrefixRevoked,
        PrefixRolledBack,
        PrefixSignatureInvalid,
        PrefixUnsigned,
        PrefixUntrusted,
        RegistryUnavailable,
        RequestTooLarge,
        SelfTestFailed,
        StorageFailed,
        TrainingFailed,
    )
    from apl_guard.guard import Guard, Guarded, LeakSample, SelfTest
    from apl_guard.in_force.watch import PolicyWatch
    from apl_guard.metrics import MetricsServer
    from apl_guard.policy import Action, Policy
    from apl_guard.prefix import Prefix, PrefixMetadata
    from apl_guard.registry import PrefixRegistry
    from apl_guard.request.context import Context
    from apl_guard.tracing import Tracing

__all__ = [
    "A1111",
    "Action",
    "AplGuardError",
    "AuditLog",
    "AuditUnavailable",
    "ComfyUI",
    "ConfigInvalid",
    "Context",
    "Decision",
    "DetectorFailed",
    "ExtraMissing",
    "Fingerprint",
    "Gallery",
    "Guard",
    "GuardUnavailable",
    "Guarded",
    "IdentitiesInvalid",
    "InvalidInput",
    "LeakSample",
    "LeakWatch",
    "MetricsServer",
    "MetricsUnavailable",
    "ModelInvalid",
    "OpenAIImages",
    "Outcome",
    "OutputCheck",
    "OutputCheckFailed",
    "OutputWithheld",
    "Policy",
    "PolicyBlocked",
    "PolicyInvalid",
    "PolicyWatch",
    "Prefix",
    "PrefixInvalid",
    "PrefixMetadata",
    "PrefixNotApplied",
    "PrefixNotFound",
    "PrefixNotPinned",
    "PrefixRegistry",
    "PrefixRevoked",
    "PrefixRolledBack",
    "PrefixSignatureInvalid",
    "PrefixUnsigned",
    "PrefixUntrusted",
    "RegistryUnavailable",
    "RequestTooLarge",
    "SelfTest",
    "SelfTestFailed",
    "StorageFailed",
    "Tracing",
    "TrainingFailed",
    "__version__",
    "decide",
]

_HOME = {
    "A1111": "adapters.a1111",
    "ComfyUI": "adapters.comfyui",
    "OpenAIImages": "adapters.openai_images",
    "AuditLog": "audit",
    "Outcome": "audit",
    "Action": "policy",
    "Decision": "decision",
    "decide": "decision",
    "Fingerprint": "encoder.fingerprint",
    "Gallery": "detect.gallery",
    "LeakWatch": "detect.leaks",
    "OutputCheck": "detect.output",
    "Guard": "guard",
    "Guarded": "guard",
    "LeakSample": "guard",
    "SelfTest": "guard",
    "PolicyWatch": "in_force.watch",
    "MetricsServer": "metrics",
    "Policy": "policy",
    "Prefix": "prefix",
    "PrefixMetadata": "prefix",
    "PrefixRegistry": "registry",
    "Context": "request.context",
    "Tracing": "tracing",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'apl_guard' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"apl_guard.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
