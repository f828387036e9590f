"""`apl-guard policy diff`, `explain` and `replay`: in what policies differ, and what one decides and would have."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apl_guard.cli.moment import Since, Until, moments_of
from apl_guard.cli.options import Json, PolicyName, complete_policy
from apl_guard.cli.reading_bar import reading
from apl_guard.errors import InvalidInput
from apl_guard.policy import Policy, built_in_policies
from apl_guard.printable import printable
from apl_guard.request import Channel

if TYPE_CHECKING:
    from apl_guard.decision import Reason
    from apl_guard.decision.rules import Verdict

__all__ = ["diff_policies", "explain_prompt", "read_text", "replay_log"]

_APPLIES = {True: "applies", False: "does not apply", None: "may apply or not"}
_MARKS = {True: "yes", False: "no ", None: "?  "}


def read_text(path_or_name: str) -> Policy:
    """A policy, to look at what it says. The lists of a built-in one are the platform's, and may not be there yet.

    Raises:
        PolicyInvalid: It is missing or damaged.
    """
    path = built_in_policies().get(path_or_name)
    return Policy.parse(path.read_bytes(), path) if path is not None else Policy.load(path_or_name)


def diff_policies(
    before: PolicyName,
    after: Annotated[
        str, typer.Argument(help="The policy to compare it with.", metavar="OTHER", autocompletion=complete_policy)
    ],
    as_json: Json = False,
) -> None:
    """Show how two policies differ, field by field; rules, lists, patterns and tests are matched by name.

    Ends with 1 if they differ.

    Example: apl-guard policy diff anonymize_faces mine.yaml
    """
    old, new = (_flat(read_text(name).model_dump(mode="json", exclude_none=True)) for name in (before, after))
    changes = [
        {"field": field, "before": old.get(field), "after": new.get(field)}
        for field in [*old, *(new.keys() - old.keys())]
        if old.get(field) != new.get(field)
    ]
    changes.sort(key=lambda change: str(change["field"]))
    if as_json:
        typer.echo(json.dumps(changes, indent=2))
    for change in changes if not as_json else ():
        if change["before"] is not None:
            typer.echo(f"- {change['field']}: {json.dumps(change['before'])}")
        if change["after"] is not None:
            typer.echo(f"+ {change['field']}: {json.dumps(change['after'])}")
    if changes:
        raise typer.Exit(1)


def explain_prompt(
    policy: PolicyName,
    prompt: Annotated[
        str | None, typer.Argument(help="A prompt, in quotes.", show_default=False, metavar="PROMPT")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="A negative prompt.")] = None,
    channel: Annotated[
        list[Channel] | None,
        typer.Option(help="Another channel that the request uses, such as latents.", metavar="<channel>"),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="The tenant of the call.")] = None,
    route: Annotated[str | None, typer.Option(help="The route of the call.")] = None,
    model: Annotated[str, typer.Option(help="The backend.")] = "diffusers:StableDiffusionPipeline",
    text_only: Annotated[
        bool, typer.Option("--text-only", help="The backend takes text only, so no prefix can reach it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Explain, rule by rule, what a policy decides about a request. Nothing is generated or recorded.
    The prompt is read as plain text, whatever syntax a backend knows.

    Example: apl-guard policy explain anonymize_faces "a photo of Mara Voss" --channel latents
    """
    from apl_guard.in_force import PolicyInForce
    from apl_guard.request import GenerationRequest
    from apl_guard.request.context import Context

    if prompt is None and " " in policy and not os.path.exists(policy):
        raise InvalidInput(
            'found a prompt and no policy; expected both: apl-guard policy explain anonymize_faces "…"', where="explain"
        )
    if prompt is None and negative is None and not channel:
        raise InvalidInput("found a policy and no prompt; expected one, or --negative or --channel", where="explain")
    loaded = Policy.load(policy)
    text = {Channel.PROMPT: prompt, Channel.NEGATIVE_PROMPT: negative}
    texts = {name: (found,) for name, found in text.items() if found is not None}
    used = frozenset({*texts, *(channel or ())})
    request = GenerationRequest(model, texts, used, carries_prefix=not text_only)
    explained = PolicyInForce(loaded).explain(request, Context(tenant, route))
    decision = explained.decision
    if as_json:
        rules = [_as_json(verdict) for verdict in explained.verdicts]
        runs = {name.value: found for name, found in decision.texts.items()}
        shown = {"rules": rules, "decision": decision.model_dump(mode="json"), "runs": runs}
        typer.echo(json.dumps(shown, indent=2))
        return
    typer.echo(f"policy {loaded.name}  version {loaded.version}  mode {loaded.mode.value}  digest {loaded.digest[:12]}")
    for rule in loaded.rules:
        about = [verdict for verdict in explained.verdicts if verdict.rule.id == rule.id]
        if not about:
            typer.echo(f"rule {rule.id}: none of its channels is used")
        for verdict in about:
            action = rule.then.action.value
            typer.echo(f"rule {rule.id}: {_APPLIES[verdict.applies]} to {verdict.channel.value} ({action})")
            for condition in verdict.conditions:
                typer.echo(f"    {_MARKS[condition.holds]} {printable(condition.text, None)}")
    for reason in decision.reasons:
        typer.echo(f"{reason.channel}: {reason.action.value}, {_by(reason)}")
    done = "" if decision.effective == decision.action else f", done: {decision.effective.value} (mode or rollout)"
    typer.echo(f"decision: {decision.action.value}{done}")
    if decision.prefixed:
        typer.echo(f"prefix: {decision.prefix or 'the one that fits'}, strength {decision.strength:g}")
    for name, runs_now in decision.texts.items():
        if runs_now != texts[name]:
            typer.echo(f"{name.value} that runs: {printable(runs_now[0], None)}")


def replay_log(
    policy: PolicyName,
    log: Annotated[Path, typer.Argument(help="Folder of an audit log.", metavar="LOG")],
    was: Annotated[
        str | None,
        typer.Option(help="The policy in force then, so that its findings count.", autocompletion=complete_policy),
    ] = None,
    since: Since = None,
    until: Until = None,
    under: Annotated[
        str | None, typer.Option(help="Only calls that a policy of this name decided.", show_default="all")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="How many changed calls to list.")] = 20,
    as_json: Json = False,
) -> None:
    """Show what a policy would have decided about the calls on record.

    Records hold no text. What rules about names, patterns and persons would find is known only with --was, and only if
    lists and detectors are the same. Otherwise such calls count as undecided, unless every answer leads to the same
    action. In a log of several guards, --under takes the calls of one policy.

    Example: apl-guard policy replay mine.yaml /var/log/apl-guard --was anonymize_faces
    """
    from apl_guard.audit.reading import read_log
    from apl_guard.in_force.replay import replay

    tried = Policy.load(policy)
    before = Policy.load(was) if was is not None else None
    counts: Counter[str] = Counter()
    ways: Counter[tuple[str, str]] = Counter()
    listed: list[tuple[str, str, str | None, str, str]] = []
    first, last = moments_of(since, until)
    records = (
        fields
        for fields in (found.fields for found in read_log(log, containing=b'"guard.decision"'))
        if (first or "") <= str(fields.get("timestamp", "")) < (last or "~")
        and (under is None or _name_of_policy(fields) == under)
    )
    with reading(log):
        for call in replay(tried, records, before):
            after = " or ".join(sorted(action.value for action in call.after))
            counts[call.change] += 1
            if call.change != "same":
                ways[call.before.value, after] += 1
                if len(listed) < show:
                    listed.append((call.timestamp, call.decision_id, call.tenant, call.before.value, after))
    if as_json:
        changes = [{"before": old, "after": new, "calls": number} for (old, new), number in ways.most_common()]
        names = ("timestamp", "decision_id", "tenant", "before", "after")
        calls = [dict(zip(names, each, strict=True)) for each in listed]
        shown = {"calls": counts.total(), "counts": dict(counts), "changes": changes, "listed": calls}
        typer.echo(json.dumps(shown, indent=2))
        return
    typer.echo(f"{counts.total()} calls under {tried.name} version {tried.version}:")
    for change in ("same", "stricter", "more lenient", "undecided"):
        typer.echo(f"  {counts[change]:>8}  {change}")
    for (old, new), number in ways.most_common():
        typer.echo(f"  {number:>8}  {old} → {new}")
    for timestamp, decision_id, tenant, old, new in listed:
        typer.echo(printable(f"{timestamp}  {decision_id}  {tenant or '-'}  {old} → {new}", None))


def _name_of_policy(fields: Mapping[str, Any]) -> object:
    policy = fields.get("policy")
    return policy.get("name") if isinstance(policy, Mapping) else None


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "rule": verdict.rule.id,
        "channel": verdict.channel.value,
        "action": verdict.rule.then.action.value,
        "applies": verdict.applies,
        "conditions": [{"text": each.text, "holds": each.holds} for each in verdict.conditions],
    }


def _by(reason: Reason) -> str:
    found = [f"by rule {reason.rule}"] if reason.rule is not None else []
    return ", ".join([*found, *([reason.why] if reason.why else [])])


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Field → value. Entries of lists go by their names where they have any."""
    parts: Iterable[tuple[str, Any]]
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        parts = zip(_names_of(value), value, strict=True)
    else:
        return {place: value}
    found: dict[str, Any] = {}
    for key, part in parts:
        found |= _flat(part, f"{place}.{key}" if place else str(key))
    return found


def _names_of(entries: list[dict[str, Any]]) -> Iterator[str]:
    """What entries go by: id or name, and a number where several have the same."""
    seen: Counter[str] = Counter()
    for each in entries:
        name = str(each.get("id") or each.get("name"))
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name} ({seen[name]})"
