"""What every adapter must do, as tests that an adapter's own suite inherits.

    class TestMyAdapter(AdapterConformance):
        @pytest.fixture
        def case(self):
            service = MyService()
            yield Case(
                pipe=MyPipe(service),
                arguments=lambda prompt: ((prompt,), {"seed": 1}),
                prefix=my_prefix,
                watch=service.on_draw,
                break_down=service.fail,
                failure=MyServiceError,
            )

Needs pytest. The suite runs over each adapter of apl-guard itself. `docs/adapters.md` has a whole adapter with it.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from apl_guard.audit import AuditLog
from apl_guard.backend import Backend, adapter_for
from apl_guard.errors import AplGuardError, AuditUnavailable, PolicyBlocked, PrefixNotFound
from apl_guard.guard import Guard
from apl_guard.policy import Policy
from apl_guard.prefix import Prefix
from apl_guard.request import Channel

__all__ = ["AdapterConformance", "Case"]

PROMPT, OTHER = "a photo of Mara Voss", "a red car"
REWRITTEN = "a photo of somebody"
_BLOCK = {
    "apiVersion": "apl-guard/v1",
    "kind": "Policy",
    "metadata": {"name": "nothing", "version": 1},
    "spec": {"rules": [{"id": "nothing", "when": {"channels": ["prompt"]}, "then": {"action": "block"}}]},
}


def _rewriting(action: str) -> Policy:
    """A policy that replaces the name in `PROMPT`, and does something with every prompt besides."""
    people = [{"name": "Mara Voss", "neutral": "somebody"}]
    rules = [
        {"id": "prompts", "when": {"channels": ["prompt"]}, "then": {"action": action}},
        {"id": "negative", "when": {"channels": ["negative_prompt"]}, "then": {"action": "allow"}},
        {"id": "named", "when": {"channels": ["prompt"], "names": ["named"]}, "then": {"action": "rewrite"}},
    ]
    spec = {"names": [{"id": "named", "people": people}], "rules": rules}
    return Policy.model_validate({**_BLOCK, "metadata": {"name": "rewriting", "version": 1}, "spec": spec})


@dataclass
class Case:
    """What the suite has to know about an adapter and what it wraps."""

    pipe: Any
    """What a user hands to the guard."""
    arguments: Callable[[str], tuple[tuple[Any, ...], dict[str, Any]]]
    """Prompt → positional arguments and arguments by name of a call, with a fixed seed."""
    prefix: Prefix | None
    """A prefix that fits, or None where none can reach the backend."""
    watch: Callable[[Callable[[], None]], None]
    """Registers what is to be called each time the backend begins to draw."""
    break_down: Callable[[], None]
    """Makes the backend fail from now on, whenever it begins to draw."""
    failure: type[Exception]
    """What it raises then."""
    same: Callable[[Any, Any], bool] = field(default=lambda one, other: bool(one == other))
    """Whether two outputs show the same pictures."""
    unknown: Mapping[str, Any] = field(default_factory=lambda: {"surprise": 1})
    """An argument that the backend does not have."""
    takes_lists: bool = False
    """Whether a prompt may be a list of prompts."""
    received: Callable[[], str] | None = None
    """All that the backend has received until now, as one text. None where nobody can see it; then the pictures alone
    tell what it was."""


class AdapterConformance:
    """Inherit from it in a class whose name begins with `Test`, and give it the fixture `case`."""

    @pytest.fixture
    def draws(self, case: Case) -> list[None]:
        """One entry for each time that the backend began to draw."""
        seen: list[None] = []
        case.watch(lambda: seen.append(None))
        return seen

    @pytest.fixture
    def passing(self, case: Case) -> str:
        """A policy under which a prompt passes: with the prefix where one can reach the backend."""
        return "unsafe_allow_all" if case.prefix is None else "anonymize_faces"

    def test_the_adapter_is_found_and_whole(self, case: Case) -> None:
        """By the package of the pipe's class or its entry point, with every member of the protocol."""
        backend = adapter_for(case.pipe)

        wanted = [name for name in vars(Backend) if not name.startswith("_")]
        assert [name for name in (*wanted, "name", "carries_prefix") if not hasattr(backend, name)] == []
        assert backend.carries_prefix is (case.prefix is not None)

    def test_decision_before_generation_outcome_after(
        self, case: Case, passing: str, tmp_path: Path, draws: list[None]
    ) -> None:
        """When the backend begins to draw, the decision is on record and the outcome is not."""
        found: list[list[str]] = []
        case.watch(lambda: found.append([record["event"] for record in _records(tmp_path)]))
        made = _guard(case, passing, audit=tmp_path).generate(*_first(case, PROMPT), **_named(case, PROMPT))

        assert found[0] == ["guard.decision"]
        decision, outcome = _records(tmp_path)
        assert decision["decision_id"] == outcome["decision_id"] == made.decision.id
        assert outcome["result"] == "passed"
        assert outcome["images"] >= 1
        assert outcome["prefix_digest"] == (case.prefix.digest if case.prefix else None)
        assert decision["carries_prefix"] is (case.prefix is not None)
        assert "Mara" not in json.dumps([decision, outcome])

    def test_the_output_is_of_the_backends_own_type(self, case: Case, passing: str) -> None:
        """The same type as without a guard."""
        guarded = _call(_guard(case, passing), case, PROMPT)

        assert type(guarded) is type(_call(case.pipe, case, PROMPT))

    def test_the_prefix_changes_the_picture_and_the_pipe_stays_as_it_was(self, case: Case, passing: str) -> None:
        """Before and after a guarded call the bare pipe draws the same."""
        before = _call(case.pipe, case, PROMPT)
        guarded = _call(_guard(case, passing), case, PROMPT)

        assert case.same(before, _call(case.pipe, case, PROMPT))
        assert case.same(before, guarded) is (case.prefix is None)

    def test_where_no_prefix_can_reach_the_default_policy_blocks(self, case: Case, draws: list[None]) -> None:
        """Rather than let the prompt pass as it is. Where one can, it asks for the prefix."""
        decision = _guard(case, "anonymize_faces").check(*_first(case, PROMPT), **_named(case, PROMPT))

        assert decision.action == ("block" if case.prefix is None else "anonymize")
        assert draws == []

    def test_a_block_stops_the_call(self, case: Case, tmp_path: Path, draws: list[None]) -> None:
        """Nothing is drawn; the error carries the decision and no text; both records are written."""
        with pytest.raises(PolicyBlocked) as caught:
            _call(_guard(case, Policy.model_validate(_BLOCK), audit=tmp_path), case, PROMPT)

        assert draws == []
        assert "Mara" not in str(caught.value)
        decision, outcome = _records(tmp_path)
        assert decision["decision_id"] == caught.value.decision.id
        assert outcome["result"] == "blocked"

    def test_an_unknown_argument_is_refused(self, case: Case, passing: str, draws: list[None]) -> None:
        """By the adapter, as an unknown argument or as a TypeError, whatever the backend would do with it."""
        first, named = _first(case, PROMPT), {**_named(case, PROMPT), **case.unknown}
        guard = _guard(case, passing)
        with contextlib.suppress(TypeError):
            assert guard.check(*first, **named).action == "block"
        with pytest.raises((PolicyBlocked, TypeError)):
            guard(*first, **named)

        assert draws == []

    def test_a_failure_is_not_a_pass(self, case: Case, passing: str, tmp_path: Path, draws: list[None]) -> None:
        """The backend's own error, asked once, on record as its failure and not as the guard's or a block."""
        guard = _guard(case, passing, audit=tmp_path)
        case.break_down()
        with pytest.raises(case.failure) as caught:
            _call(guard, case, PROMPT)

        assert not isinstance(caught.value, AplGuardError)
        assert len(draws) <= 1
        assert [record.get("result") for record in _records(tmp_path)] == [None, "backend_error"]
        assert "Mara" not in json.dumps(_records(tmp_path))

    def test_without_the_record_nothing_is_drawn(self, case: Case, passing: str, draws: list[None]) -> None:
        """An audit log that cannot write is no reason to go on."""
        guard = _guard(case, passing, audit=_BrokenLog())
        with pytest.raises(AuditUnavailable):
            _call(guard, case, PROMPT)

        assert draws == []

    def test_without_the_prefix_nothing_is_drawn(self, case: Case, tmp_path: Path, draws: list[None]) -> None:
        """Neither when the guard is made nor when it is called."""
        if case.prefix is None:
            pytest.skip("no prefix can reach this backend")
        with pytest.raises(PrefixNotFound):
            _call(Guard(case.pipe, registry=tmp_path / "empty", audit=tmp_path / "audit"), case, PROMPT)

        assert draws == []

    def test_the_request_is_a_snapshot(self, case: Case) -> None:
        """A text that is no plain string becomes one; what the caller does to its arguments changes nothing."""
        backend = adapter_for(case.pipe)
        first, named = _first(case, _Sly(PROMPT)), _named(case, _Sly(PROMPT))
        request = backend.read(first, named)
        before = copy.deepcopy(dict(request.text))
        _spoil([*first, named])

        assert dict(request.text) == before
        assert request.prompts == (PROMPT,)
        assert all(type(text) is str for texts in request.text.values() for text in texts)
        assert Channel.PROMPT in request.used
        assert PROMPT not in repr(request)

    def test_lists_of_prompts_are_copied(self, case: Case) -> None:
        """Where they are taken."""
        if not case.takes_lists:
            pytest.skip("takes one prompt at a time")
        prompts: list[str] = [PROMPT, OTHER]
        args, kwargs = case.arguments(PROMPT)
        request = adapter_for(case.pipe).read((prompts, *args[1:]), kwargs)
        prompts[0] = "another"

        assert request.prompts == (PROMPT, OTHER)

    def test_what_runs_is_what_the_policy_says(self, case: Case) -> None:
        """A text that a policy puts in place of a prompt is drawn, and the prompt is not."""
        backend = adapter_for(case.pipe)
        request = backend.read(*case.arguments(PROMPT)).saying({Channel.PROMPT: (OTHER,)})

        output = backend.generate(request, None).output

        assert case.same(output, _call(case.pipe, case, OTHER))
        assert not case.same(output, _call(case.pipe, case, PROMPT))

    @pytest.mark.parametrize("action", ["allow", "anonymize"])
    def test_under_rewrite_the_backend_receives_the_rewritten_text_only(self, case: Case, action: str) -> None:
        """Not the name, in no part of what reaches it: alone, and with the prefix in front."""
        pytest.importorskip("ahocorasick", reason="lists of names need: pip install 'apl-guard[names]'")
        if action == "anonymize" and case.prefix is None:
            pytest.skip("no prefix can reach this backend")
        received = case.received or (lambda: REWRITTEN)
        before = len(received())
        made = _guard(case, _rewriting(action)).generate(*_first(case, PROMPT), **_named(case, PROMPT))
        given = received()[before if case.received else 0 :].casefold()

        assert made.decision.action == "rewrite"
        assert made.outcome.result == "passed"
        assert REWRITTEN in given
        assert "mara" not in given
        assert "voss" not in given
        plain = _call(case.pipe, case, REWRITTEN)
        assert not case.same(made.output, _call(case.pipe, case, PROMPT))
        assert case.same(made.output, plain) is (action == "allow")
        assert made.outcome.prefix_digest == (case.prefix.digest if case.prefix and action == "anonymize" else None)

    def test_the_guard_hides_what_it_wraps(self, case: Case, passing: str) -> None:
        """No private attribute, nothing unknown, and nothing unknown can be set."""
        guard = _guard(case, passing)
        for name in ("_pipe", "_client", "_function", "no_such_setting"):
            with pytest.raises(AttributeError):
                getattr(guard, name)
        with pytest.raises(AttributeError):
            guard.no_such_setting = 1


class _Sly(str):
    """A text that says something else when asked again."""

    def __str__(self) -> str:
        return "something else"


class _BrokenLog(AuditLog):
    def decision(self, *_: Any, **__: Any) -> None:
        raise AuditUnavailable("the disk is full")


def _guard(case: Case, policy: str | Policy, **options: Any) -> Guard:
    return Guard(case.pipe, policy, prefix=case.prefix, **options)


def _first(case: Case, prompt: str) -> tuple[Any, ...]:
    return case.arguments(prompt)[0]


def _named(case: Case, prompt: str) -> dict[str, Any]:
    return case.arguments(prompt)[1]


def _call(target: Any, case: Case, prompt: str) -> Any:
    args, kwargs = case.arguments(prompt)
    return target(*args, **kwargs)


def _spoil(values: list[Any]) -> None:
    """Change everything in them that can be changed."""
    for value in values:
        if isinstance(value, dict):
            _spoil(list(value.values()))
            value.clear()
        elif isinstance(value, list):
            _spoil(value)
            value.clear()


def _records(folder: Path) -> list[dict[str, Any]]:
    """What a guard recorded in a folder; what the log records about itself is left out."""
    lines = "".join(path.read_text() for path in sorted((folder / "segments").iterdir())).splitlines()
    return [record for line in lines if (record := json.loads(line))["event"].startswith("guard.")]
