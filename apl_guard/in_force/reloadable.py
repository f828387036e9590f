"""The policy of one guard: which one is in force, and how another takes its place while calls run.

Each change is on record before the first decision under it, so that the log shows which policy was in force when.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from pathlib import Path

from apl_guard.audit import AuditLog
from apl_guard.audit.record_fields import brief, policy_record
from apl_guard.backend import Backend
from apl_guard.errors import AuditUnavailable, InvalidInput, PolicyInvalid
from apl_guard.forks import mend_after_fork
from apl_guard.in_force import PolicyInForce
from apl_guard.in_force.watch import PolicyWatch
from apl_guard.metrics import Metrics
from apl_guard.policy import Mode, Policy, named_files, policy_files
from apl_guard.registry.finder import PrefixFinder
from apl_guard.registry.fit import Fit

__all__ = ["ReloadablePolicy"]


class ReloadablePolicy:
    """A policy in force that is read again when its file has changed.

    Args:
        policy: A policy, the name of a built-in one, or a policy file.
        backend: The adapter of the pipe.
        finder: Finds the prefixes that the policy asks for.
        audit: Where it is recorded.
        metrics: Where it is counted.
        has_output_check: Whether the guard looks at finished pictures.

    Raises:
        PolicyInvalid: The policy is missing or damaged, or a test in it does not hold.
        DetectorFailed: What a rule asks could not look at a text of its tests.
        PrefixNotFound: No prefix fits the text encoder of the pipe.
        AuditUnavailable: That it is in force cannot be recorded.
    """

    def __init__(
        self,
        policy: str | Path | Policy,
        backend: Backend,
        finder: PrefixFinder,
        audit: AuditLog,
        metrics: Metrics,
        *,
        has_output_check: bool = False,
    ) -> None:
        self._id = uuid.uuid4().hex
        self._file = None if isinstance(policy, Policy) else policy
        self._backend = backend
        self._finder = finder
        self._audit = audit
        self._metrics = metrics
        self._has_output_check = has_output_check
        self._reloading = threading.Lock()
        self._watches: list[PolicyWatch] = []
        self._refused: list[Path] = []
        """The files that the policy refused last names. One of them may be what was wrong."""
        self._in_force = PolicyInForce.tested(policy if isinstance(policy, Policy) else Policy.load(policy))
        found = self._find_demands(self.policy)  # so that what is missing shows when the service starts
        audit.in_force("in_force", self._record(self._in_force, found))
        metrics.in_force(self.policy)
        mend_after_fork(self)

    @property
    def in_force(self) -> PolicyInForce:
        """Taken once for each call, for another may take its place at any moment."""
        for watch in self._watches:
            watch.go_on()
        return self._in_force

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._in_force.policy

    def reload(self) -> bool:
        """Read the file again and put it in force, if it is good.

        Returns:
            Whether another policy is in force now.

        Raises:
            PolicyInvalid: The file is missing or damaged, or a test in it does not hold. The old policy stays.
            DetectorFailed: What a rule asks could not look at a text of its tests. The old policy stays.
            PrefixNotFound: The prefix for it is missing. The old policy stays.
            AuditUnavailable: The change cannot be recorded. The old policy stays.
            InvalidInput: The policy is no file.
        """
        file = self._path()
        with self._reloading:
            policy: Policy | None = None
            try:
                policy = Policy.load(file)
                changed = policy.digest != self.policy.digest
                if changed:
                    in_force = PolicyInForce.tested(policy)
                    found = self._find_demands(policy)
                    self._audit.in_force("reloaded", self._record(in_force, found, before=brief(self.policy)))
                    before, self._in_force = self.policy, in_force
                    self._metrics.in_force(policy, instead_of=before)
            except Exception as error:
                self._refused = named_files(file)
                self._reject(policy, error)
                raise
            self._refused = []
            self._metrics.reloaded("accepted" if changed else "unchanged", self.policy)
            return changed

    def watch(self, seconds: float) -> PolicyWatch:
        """Reload whenever the file, or one that it names, changes.

        Raises:
            InvalidInput: The policy is no file, or nobody can wait for that time.
        """
        file = self._path()
        watch = PolicyWatch(lambda: [*policy_files(file, self.policy), *self._refused], self.reload, seconds)
        self._watches = [*(each for each in self._watches if not each.is_closed), watch]
        return watch

    def close(self) -> None:
        """Note that it decides no more."""
        self._metrics.out_of_force(self.policy)

    def after_fork(self) -> None:
        """In the child of a fork. A thread of the parent may have held the lock."""
        self._reloading = threading.Lock()

    def _path(self) -> str | Path:
        if self._file is None:
            raise InvalidInput("the guard was made with a policy that is no file", where="policy")
        return self._file

    def _find_demands(self, policy: Policy) -> list[Fit]:
        """The prefixes that a policy asks for. What else it asks for is there."""
        if policy.spec.output_check == "required" and not self._has_output_check:
            raise PolicyInvalid(
                "it requires an output check, and this guard has none; pass output_check=",
                where=f"policy '{policy.name}'",
            )
        if policy.mode != Mode.ENFORCE or not self._backend.carries_prefix:
            return []
        names = sorted(policy.prefixes, key=lambda name: name or "")
        return [self._finder.find(name, policy.spec.prefix) for name in names]

    def _record(self, in_force: PolicyInForce, found: list[Fit], **more: object) -> dict[str, object]:
        more = {"output_check": self._has_output_check, **more}
        return policy_record(self._id, self._backend, in_force.policy, found, in_force.models, **more)

    def _reject(self, refused: Policy | None, error: Exception) -> None:
        """Count and record that the policy stays. What led to it is raised, whatever becomes of the record."""
        self._metrics.reloaded("rejected", self.policy)
        more = {"refused": None if refused is None else brief(refused), "error": type(error).__name__}
        with contextlib.suppress(AuditUnavailable):  # the next record that can be written says that it is missing
            self._audit.in_force("rejected", self._record(self._in_force, [], **more))
