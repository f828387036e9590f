"""The guard: stands where the pipe stood, decides about each call, carries the decision out and records it.

    call → adapter.read → decide → decision recorded → adapter.generate → outcome recorded → image

An error anywhere on this way means that there is no image.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, start_http_server

from apl_guard.audit import AuditLog, Outcome
from apl_guard.backend import Backend, Generation, adapter_for
from apl_guard.decision import Decision, decide
from apl_guard.errors import AplGuardError, GuardUnavailable, PolicyBlocked, PrefixNotApplied, PrefixNotFound
from apl_guard.metrics import Metrics
from apl_guard.policy import Action, Policy
from apl_guard.prefix import Prefix
from apl_guard.registry import PrefixRegistry
from apl_guard.request import Channel, GenerationRequest

if TYPE_CHECKING:
    from apl_guard.fingerprint import Fingerprint

__all__ = ["Guard", "Guarded", "MetricsServer"]


@dataclass(frozen=True)
class Guarded:
    """What a guarded call gave, with its records."""

    output: Any
    """What the pipe returned, in the pipe's own type."""
    decision: Decision
    outcome: Outcome


class Guard:
    """Wraps a pipe. Calling it takes the same arguments and returns the same type as calling the pipe.

    Settings of the pipe, such as `device` and `scheduler`, are reachable as attributes. What could encode or
    generate unguarded is not. The pipe itself stays as it is.

    Args:
        pipe: The pipe.
        policy: A policy, the name of a built-in one, or a policy file.
        prefix: A prefix, its folder, or its name. None finds the one that fits in the registry.
        registry: Where to find it, on each call. None stands for the user's registry.
        audit: Folder for the records, or a log. None sends them to the platform's logging.
        metrics_registry: The Prometheus registry to count on. None makes one for this guard.

    Raises:
        PolicyInvalid: The policy is missing or damaged.
        PrefixInvalid: The prefix is missing or damaged.
        PrefixNotFound: No prefix fits the text encoder of the pipe.
        AuditUnavailable: The folder for the records cannot be used.
        InvalidInput: There is no adapter for this pipe.

    Example:
        >>> from apl_guard.testing import random_prefix, tiny_pipe
        >>> pipe = tiny_pipe()
        >>> guard = Guard(pipe, policy="anonymize_faces", prefix=random_prefix(pipe, n=4))
        >>> guard("a photo of a man", num_inference_steps=1).images[0].size
        (32, 32)
    """

    def __init__(
        self,
        pipe: Any,
        policy: str | Path | Policy = "anonymize_faces",
        *,
        prefix: str | Path | Prefix | None = None,
        registry: PrefixRegistry | str | Path | None = None,
        audit: str | Path | AuditLog | None = None,
        metrics_registry: CollectorRegistry | None = None,
    ) -> None:
        own: dict[str, Any] = {
            "_backend": adapter_for(pipe),
            "_policy": policy if isinstance(policy, Policy) else Policy.load(policy),
            "_prefix": Prefix.load(prefix) if isinstance(prefix, str | Path) else prefix,
            "_registry": registry if isinstance(registry, PrefixRegistry) else PrefixRegistry(registry),
            "_audit": audit if isinstance(audit, AuditLog) else AuditLog(audit),
            "_metrics_registry": metrics_registry or CollectorRegistry(),
        }
        own["_metrics"] = Metrics.on(own["_metrics_registry"])
        self.__dict__.update(own)  # not by assignment, which sets what belongs to the pipe
        if self._policy.mode == "enforce" and any(
            rule.action == Action.ANONYMIZE for rule in self._policy.rules
        ):
            self._find_prefix()  # so that a missing prefix shows when the service starts

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        policy: Policy = self._policy
        return policy

    def __repr__(self) -> str:
        return f"Guard({self._backend.name!r}, policy={self.policy.name!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as the pipe does, under the policy.

        Returns:
            What the pipe returns.

        Raises:
            PolicyBlocked: The policy decided against the request.
            GuardUnavailable: The guard could not do its work.
            InvalidInput: A prompt is no text.
            Exception: Whatever the pipe raises, unchanged.
        """
        return self.generate(*args, **kwargs).output

    def check(self, *args: Any, **kwargs: Any) -> Decision:
        """Decide about a call without generating or recording anything."""
        return decide(self.policy, self._backend.read(args, kwargs))

    def generate(self, *args: Any, **kwargs: Any) -> Guarded:
        """Generate as `__call__` does, and return the decision and the outcome with the output.

        Raises:
            PolicyBlocked: The policy decided against the request.
            GuardUnavailable: The guard could not do its work.
            InvalidInput: A prompt is no text.
            Exception: Whatever the pipe raises, unchanged.
        """
        started = perf_counter()
        request = self._backend.read(args, kwargs)
        return _Call(self, request, started).run()

    def serve_metrics(self, port: int, address: str = "127.0.0.1") -> MetricsServer:
        """Serve the metrics for Prometheus over HTTP, in a thread of this process.

        Args:
            port: Where to listen; 0 takes a free port.
            address: On which address; "0.0.0.0" makes the metrics reachable from other machines.

        Returns:
            The server, with its port and a way to close it.

        Raises:
            OSError: The port is taken.
        """
        server, thread = start_http_server(port, address, registry=self._metrics_registry)
        return MetricsServer(server, thread)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"a guard has no '{name}'", name=name)
        value = self.__dict__["_backend"].get_setting(name)
        return self._chained(value) if inspect.ismethod(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        self._backend.set_setting(name, value)

    def _chained(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Such a method returns nothing, or the pipe, for which the guard steps in."""

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            return None if method(*args, **kwargs) is None else self

        return call

    def _find_prefix(self) -> Prefix:
        """The prefix for the text encoders that are in the pipe now."""
        fingerprints: Mapping[str, Fingerprint] = self._backend.fingerprints()
        if self._prefix is None:
            found: Prefix = self._registry.find(fingerprints)
            return found
        given: Prefix = self._prefix
        made_for = given.metadata.fingerprints
        for slot, fingerprint in fingerprints.items():
            if made_for.get(slot) != fingerprint:
                theirs = made_for[slot].key if slot in made_for else "no encoder in this slot"
                raise PrefixNotFound(
                    f"prefix '{given.metadata.name}' was made for {theirs}, but {slot} of this pipe is "
                    f"{fingerprint.key}; train one for it with: "
                    "apl-guard train --model MODEL --identities people.yaml --output PREFIX",
                    fingerprint=fingerprint,
                )
        return given


class _Call:
    """One call on its way through the guard."""

    def __init__(self, guard: Guard, request: GenerationRequest, started: float) -> None:
        self._guard = guard
        self._request = request
        self._started = started
        self._generation_seconds: float | None = None
        self._prefix: Prefix | None = None
        self._generation: Generation | None = None

    def run(self) -> Guarded:
        """Decide, act, record."""
        try:
            self._decision = decide(self._guard.policy, self._request)
            self._guard._audit.decision(self._decision, self._request)
            self._guard._metrics.decided(self._decision)
        except Exception as error:
            self._count("failed")
            raise _unavailable(error) from error
        if self._decision.effective == Action.BLOCK:
            self._end("blocked")
            raise PolicyBlocked(_explain(self._decision), decision=self._decision)
        try:
            if self._decision.effective == Action.ANONYMIZE:
                self._prefix = self._guard._find_prefix()
        except Exception as error:
            self._end("failed", error)
            raise _unavailable(error) from error
        self._generation = generation = self._generate()
        if self._prefix is not None:
            self._check_receipt(self._prefix, generation)
            self._guard._metrics.used(self._prefix)
        return Guarded(generation.output, self._decision, self._end("passed"))

    def _generate(self) -> Generation:
        vectors = None if self._prefix is None else self._prefix.vectors
        began = perf_counter()
        result = "backend_error"
        try:
            backend: Backend = self._guard._backend
            return backend.generate(self._request, vectors)
        except BaseException as error:
            self._generation_seconds = perf_counter() - began
            if isinstance(error, AplGuardError):
                result = "failed"
            self._end(result, error)
            raise
        finally:
            self._generation_seconds = perf_counter() - began

    def _check_receipt(self, prefix: Prefix, generation: Generation) -> None:
        """Believe that the prefix was in front of every prompt only where every text encoder saw it."""
        expected = (prefix.n,) * len(self._request.prompts)
        for slot in prefix.metadata.widths:
            received = generation.receipt.prefix_rows.get(slot, ())
            if received != expected:
                error = PrefixNotApplied(
                    f"{slot} received {list(received)} prefix vectors, expected {list(expected)}, one number "
                    "for each prompt; something replaced the text encoder or its tokenizer during the call"
                )
                self._end("failed", error)
                raise error

    def _end(self, result: str, error: BaseException | None = None) -> Outcome:
        """Record how the call ended. Nothing is released if that fails."""
        now = perf_counter()
        generation, prefix = self._generation, self._prefix
        outcome = Outcome(
            id=self._decision.id,
            result=result,
            effective=self._decision.effective.value,
            images=generation.images if generation is not None and result == "passed" else 0,
            prefix=prefix.metadata.name if prefix is not None else None,
            prefix_digest=prefix.digest if prefix is not None else None,
            prefix_rows=dict(generation.receipt.prefix_rows) if generation is not None else {},
            tokens_cut=dict(generation.receipt.tokens_cut) if generation is not None else {},
            error=type(error).__name__ if error is not None else None,
            overhead_ms=round(1000 * (now - self._started - (self._generation_seconds or 0)), 3),
            generation_ms=_milliseconds(self._generation_seconds),
        )
        try:
            self._guard._audit.outcome(outcome)
        except Exception as unwritten:
            self._count("failed")
            raise _unavailable(unwritten) from (error or unwritten)
        self._count(result)
        return outcome

    def _count(self, result: str) -> None:
        generation = self._generation_seconds
        overhead = perf_counter() - self._started - (generation or 0)
        self._guard._metrics.ended(result, overhead=overhead, generation=generation)


class MetricsServer:
    """A running HTTP server for metrics."""

    def __init__(self, server: Any, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self._server.server_address[1]
        return port

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _unavailable(error: Exception) -> AplGuardError:
    """An error of the guard's own work, as one that says there is no image."""
    if isinstance(error, AplGuardError):
        return error
    return GuardUnavailable(f"the guard failed ({type(error).__name__}), so there is no image")


def _explain(decision: Decision) -> str:
    """Say what was blocked, and which line of the policy would permit it."""
    parts = []
    for reason in decision.reasons:
        if reason.action != Action.BLOCK:
            continue
        if reason.channel not in list(Channel):
            parts.append(f"argument '{reason.channel}' is unknown to this version of apl-guard")
        else:
            by = f"blocked by rule '{reason.rule}'" if reason.rule else "named by no rule"
            parts.append(
                f"channel '{reason.channel}' is {by}; a prefix cannot protect it, a rule with "
                f"`channels: [{reason.channel}]` and `action: allow` would permit it"
            )
    return f"policy '{decision.policy}' blocks this request: {'; '.join(parts)}"


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
