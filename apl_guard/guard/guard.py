"""The guard: stands where the pipe stood, decides about each call, carries the decision out and records it.

    call → adapter.read → decide → decision recorded → adapter.generate → look → outcome recorded → image

An error anywhere on this way means that there is no image.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from prometheus_client import CollectorRegistry

from apl_guard.audit import AuditLog
from apl_guard.decision import Decision
from apl_guard.detect.leaks import LeakWatch
from apl_guard.detect.output import OutputCheck
from apl_guard.errors import GuardUnavailable, InvalidInput, SelfTestFailed
from apl_guard.guard.call import Call, Guarded
from apl_guard.guard.leak_samples import LeakSample
from apl_guard.guard.parts import Parts, put_together
from apl_guard.guard.refusal import refuse
from apl_guard.guard.selftest import CANARIES, SelfTest
from apl_guard.in_force.watch import PolicyWatch
from apl_guard.metrics import MetricsServer, Stage, is_multiprocess, of_all_processes, serve
from apl_guard.policy import Policy
from apl_guard.prefix import Prefix
from apl_guard.registry import PrefixRegistry
from apl_guard.request.context import Context, calling_for, current_context

if TYPE_CHECKING:
    from apl_guard.tracing import Tracing

__all__ = ["Guard", "Guarded"]


class Guard:
    """Wraps a pipe: call it with the pipe's arguments, and it returns what the pipe returns, under a policy.

    Settings of the pipe, such as `device` and `scheduler`, are reachable as attributes. Whatever could encode or
    generate unguarded is not. The pipe itself is not changed. A guard can be called from several threads.

    Args:
        pipe: The pipe, or an adapter of your own.
        policy: A policy, the name of a built-in one, or a policy file.
        prefix: A prefix, its folder, or its name. None finds the one that fits in the registry.
        registry: Where to find it, on each call: a folder, a URL, `owner/name` on the hub. None: the user's registry.
        audit: Folder for the records, or an `AuditLog`. None sends them to the platform's logging, at level info, which
            Python by default does not show.
        audit_witness: One or more other folders, best on another machine, that receive the log's checkpoints.
        metrics_registry: The Prometheus registry for the metrics. None makes one for this guard.
        metrics_tenants: Tenants whose outcomes are counted by name; all others count as `other`.
        tracing: Where OpenTelemetry spans go. None: no spans.
        output_check: Looks for people of a gallery in finished images. None: no check.
        leak_watch: How `measure_leaks` measures leaks, and on which share of calls. None: no measurement.

    Raises:
        PolicyInvalid: The policy is missing or damaged.
        DetectorFailed: What a rule asks could not look at a text of its tests.
        PrefixInvalid: The prefix is missing or damaged.
        PrefixNotFound: No prefix fits the text encoder of the pipe.
        AuditUnavailable: The folder for the records cannot be used.
        InvalidInput: There is no adapter for this pipe, or an argument is of another type.
        MetricsUnavailable: Several processes are to count together, and their folder cannot be used.

    Example:
        >>> from apl_guard.testing import random_prefix, tiny_pipe
        >>> pipe = tiny_pipe()
        >>> guard = Guard(pipe, policy="anonymize_faces", prefix=random_prefix(pipe, n=4))
        >>> guard("a photo of a man", num_inference_steps=1).images[0].size
        (32, 32)
    """

    _parts: Parts
    _is_closed: bool

    def __init__(
        self,
        pipe: Any,
        policy: str | Path | Policy = "anonymize_faces",
        *,
        prefix: str | Path | Prefix | None = None,
        registry: PrefixRegistry | str | Path | None = None,
        audit: str | Path | AuditLog | None = None,
        audit_witness: str | Path | Iterable[str | Path] = (),
        metrics_registry: CollectorRegistry | None = None,
        metrics_tenants: Iterable[str] = (),
        tracing: Tracing | None = None,
        output_check: OutputCheck | None = None,
        leak_watch: LeakWatch | None = None,
    ) -> None:
        parts = put_together(
            pipe,
            policy,
            prefix=prefix,
            registry=registry,
            audit=audit,
            audit_witness=audit_witness,
            metrics_registry=metrics_registry,
            metrics_tenants=metrics_tenants,
            tracing=tracing,
            output_check=output_check,
            leak_watch=leak_watch,
        )
        # Not by assignment, which sets what belongs to the pipe.
        self.__dict__.update(_parts=parts, _is_closed=False)

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._parts.policy.in_force.policy

    def __repr__(self) -> str:
        return f"Guard({self._parts.backend.name!r}, policy={self.policy.name!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as the pipe does, under the policy.

        Returns:
            What the pipe returns.

        Raises:
            PolicyBlocked: The policy decided against the request, or the output check against an image.
            GuardUnavailable: The guard could not do its work.
            InvalidInput: A prompt is not text.
            Exception: Whatever the pipe raises, unchanged.
        """
        return self.generate(*args, **kwargs).output

    def context(
        self, *, tenant: str | None = None, route: str | None = None, subject: str | None = None
    ) -> AbstractContextManager[Context]:
        """Say for whom the calls within are made, so that rules can tell. It holds for this thread or task.

        Example: `with guard.context(tenant="acme", route="edit"): guard(prompt)`.

        Args:
            tenant: The customer, team or application for which calls are made.
            route: The part of the service that they came through, such as `generate` or `edit`.
            subject: The person or account who asks; recorded as a keyed digest.

        Raises:
            InvalidInput: A value is not text of at most 200 printable characters.
        """
        return calling_for(tenant=tenant, route=route, subject=subject)

    def check(self, *args: Any, **kwargs: Any) -> Decision:
        """Decide about a call without generating or recording anything. What would be blocked is returned, not raised.

        Raises:
            InvalidInput: A prompt is not text.
        """
        parts = self._parts
        return parts.policy.in_force.decide(parts.backend.read(args, kwargs), current_context())

    def generate(self, *args: Any, **kwargs: Any) -> Guarded:
        """Generate as `__call__` does, and return the decision and the outcome with the output.

        Raises:
            PolicyBlocked: The policy decided against the request, or the output check against an image.
            GuardUnavailable: The guard could not do its work.
            InvalidInput: A prompt is not text.
            Exception: Whatever the pipe raises, unchanged.
        """
        try:
            self._parts.self_tests.check()
        except SelfTestFailed as error:
            self._check_open()
            with self._parts.watch() as watch:
                refuse(error, self._parts, self.policy, watch)
            raise
        return self._generate(*args, **kwargs)

    def self_test(self, prompts: Sequence[str] = CANARIES, **arguments: Any) -> SelfTest:
        """Send canary prompts through the real pipe, as a service does before it takes requests.

        Each is handled like every prompt: decided, recorded, generated, its receipt checked. The images are
        thrown away. After a failure the guard gives no image until a self-test passes.

        Args:
            prompts: Prompts that the policy anonymizes.
            arguments: Further arguments of each call, such as `num_inference_steps=1`.

        Raises:
            SelfTestFailed: A canary was not answered, or was answered without a prefix.
            InvalidInput: The prompts are one text, not a sequence of them.

        Example:
            >>> from apl_guard.testing import random_prefix, tiny_pipe
            >>> pipe = tiny_pipe()
            >>> guard = Guard(pipe, prefix=random_prefix(pipe, n=4))
            >>> guard.ready
            False
            >>> sorted(guard.self_test(num_inference_steps=1).change), guard.ready
            (['text_encoder'], True)
        """
        if isinstance(prompts, str):  # each letter would be a canary
            raise InvalidInput("found one text; expected a sequence of texts, such as [text]", where="prompts")
        return self._parts.self_tests.run(self._generate, prompts, arguments)

    @property
    def ready(self) -> bool:
        """Whether the last self-test passed, whatever one that runs now will show; for a service's readiness probe."""
        return self._parts.self_tests.ready

    def _generate(self, *args: Any, **kwargs: Any) -> Guarded:
        self._check_open()
        parts = self._parts
        in_force = parts.policy.in_force
        with parts.watch() as watch:
            try:
                with watch.stage(Stage.READ):
                    request = parts.backend.read(args, kwargs)
            except Exception as error:
                refuse(error, parts, in_force.policy, watch)
                raise
            return Call(request, parts, in_force, watch).run()

    def measure_leaks(self, most: int | None = None) -> tuple[LeakSample, ...]:
        """Generate the prompts of sampled calls twice more **without protection**, and compare who is in the images.

        Call it when the accelerator is idle: each sample costs two generations. Only the recogniser sees the plain
        images. The result is recorded and counted before it is returned.

        Args:
            most: How many samples to measure; None measures all that wait.

        Raises:
            InvalidInput: The guard was made without a leak watch.
            OutputCheckFailed: The recogniser failed. That sample is dropped.
            GuardUnavailable: The guard is closed, the record cannot be written, or the pipe is no longer the one that
                drew a sample, which is dropped.
            Exception: Whatever the pipe raises, unchanged.
        """
        self._check_open()
        if self._parts.leak_samples is None:
            raise InvalidInput("found none; expected Guard(…, leak_watch=LeakWatch(…))", where="leak_watch")
        return self._parts.leak_samples.measure(most)

    def _check_open(self) -> None:
        if self._is_closed:
            raise GuardUnavailable("the guard is closed, so there is no image; make another one")

    def reload_policy(self) -> bool:
        """Read the policy file again and put it in force, if it is valid. Running calls keep the old one.

        Returns:
            Whether another policy is in force now.

        Raises:
            PolicyInvalid: The file is missing or damaged, or one of its tests fails. The old policy stays.
            DetectorFailed: What a rule asks could not look at a text of its tests. The old policy stays.
            PrefixNotFound: The prefix for it is missing. The old policy stays.
            AuditUnavailable: The change cannot be recorded. The old policy stays.
            GuardUnavailable: The guard is closed.
            InvalidInput: The guard was made with a policy that is not a file.
        """
        self._check_open()
        return self._parts.policy.reload()

    def watch_policy(self, seconds: float = 1.0) -> PolicyWatch:
        """Reload the policy whenever its file, or one that it names, changes; in a thread of this process.

        What is wrong with a changed file is logged and counted, and the policy before it stays in force.

        Args:
            seconds: How often to look.

        Returns:
            The watch, with a way to end it.

        Raises:
            GuardUnavailable: The guard is closed.
            InvalidInput: The guard was made with a policy that is not a file, or `seconds` is no number above 0.
        """
        self._check_open()
        watch = self._parts.policy.watch(seconds)
        self._parts.opened.callback(watch.close)
        return watch

    def serve_metrics(self, port: int, address: str = "127.0.0.1") -> MetricsServer:
        """Serve the metrics for Prometheus over HTTP, in a thread of this process.

        Where PROMETHEUS_MULTIPROC_DIR is set, these are the metrics of all processes that count there.

        Args:
            port: Where to listen; 0 takes a free port.
            address: On which address; "0.0.0.0" makes the metrics reachable from other machines.

        Returns:
            The server, with its port and a way to close it.

        Raises:
            MetricsUnavailable: The port is taken or may not be used.
            GuardUnavailable: The guard is closed.
        """
        self._check_open()
        server = serve(of_all_processes() if is_multiprocess() else self._parts.metrics_registry, port, address)
        self._parts.opened.callback(server.close)
        return server

    def close(self) -> None:
        """End what the guard has opened: its log in a folder, its watches of the policy, its servers of metrics.

        From then on it gives no image. A log that was handed in stays open, as does the pipe. What nobody closes ends
        with the program. Closing twice is fine, and `with Guard(…) as guard:` closes it, too.

        Example:
            >>> from apl_guard.testing import random_prefix, tiny_pipe
            >>> pipe = tiny_pipe()
            >>> with Guard(pipe, prefix=random_prefix(pipe, n=4)) as guard:
            ...     image = guard("a photo of a man", num_inference_steps=1).images[0]
            >>> guard("a photo of a man")
            Traceback (most recent call last):
            apl_guard.errors.GuardUnavailable: the guard is closed, so there is no image; make another one
        """
        self.__dict__["_is_closed"] = True
        self._parts.opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __copy__(self) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a guard cannot be pickled or copied deeply: its log, locks and pipe belong to this process; make one in "
            "each process that draws"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"a guard has no '{name}'", name=name)
        value = self.__dict__["_parts"].backend.get_setting(name)
        return self._chained(value) if inspect.ismethod(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        self._parts.backend.set_setting(name, value)

    def _chained(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Such a method returns nothing, or the pipe, for which the guard steps in."""

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            return None if method(*args, **kwargs) is None else self

        del call.__wrapped__  # it would lead to the pipe
        return call
