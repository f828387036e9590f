"""`apl-guard policy`: what policies there are and say, whether they are right, and how to begin one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from apl_guard.cli.options import Json, PolicyName, complete_policy
from apl_guard.cli.policy_effects import diff_policies, explain_prompt, read_text, replay_log
from apl_guard.errors import PolicyInvalid, StorageFailed
from apl_guard.policy import Policy, built_in_policies
from apl_guard.policy.json_schema import json_schema
from apl_guard.policy.problems import did_you_mean
from apl_guard.printable import printable

__all__ = ["app"]

app = typer.Typer(
    help="Show, check and compare policies, and see what they would decide.",
    epilog="Begin with: apl-guard policy init mine.yaml; apl-guard policy test mine.yaml",
    no_args_is_help=True,
)

_STARTER = """\
# A policy for apl-guard. The language: docs/policies.md. Check it with: apl-guard policy test FILE
apiVersion: apl-guard/v1
kind: Policy
metadata:
  name: {name}
  version: 1 # count up on each change
  description: The learned prefix on every prompt; nothing else comes in.
spec:
  mode: enforce # enforce | shadow | unsafe_off
  on_error: block # block | fallback | unsafe_passthrough
  without_prefix: block # block | rewrite; for backends that take text alone
  rules:
    # A channel to which no rule applies is blocked.
    - id: prefix-on-every-prompt
      when: {{channels: [prompt]}}
      then: {{action: anonymize}}
    - id: negative-prompts
      when: {{channels: [negative_prompt]}}
      then: {{action: allow}}
# The policy comes into force only if these hold.
tests:
  - name: a prompt gets the prefix
    given: {{prompt: a photo of somebody}}
    expect: {{action: anonymize, rule: prefix-on-every-prompt}}
  - name: latents do not come in
    given: {{prompt: a photo of somebody, channels: [latents]}}
    expect: {{action: block}}
"""


def _complete_built_in(incomplete: str) -> list[str]:
    return [name for name in built_in_policies() if name.startswith(incomplete)]


@app.command("list")
def list_policies(as_json: Json = False) -> None:
    """List the built-in policies.

    Example: apl-guard policy list
    """
    policies = [Policy.parse(path.read_bytes(), path) for _, path in sorted(built_in_policies().items())]
    if as_json:
        typer.echo(json.dumps([policy.metadata.model_dump() for policy in policies], indent=2))
        return
    names, modes = (max(map(len, column)) for column in zip(*((p.name, p.mode.value) for p in policies), strict=True))
    for policy in policies:
        about = printable(policy.metadata.description, None)
        typer.echo(f"{policy.name:{names}}  version {policy.version}  {policy.mode.value:{modes}}  {about}")


@app.command("show", no_args_is_help=True)
def show_policy(policy: PolicyName, as_json: Json = False) -> None:
    """Show what a policy says. What --json prints is a policy file again.

    Example: apl-guard policy show anonymize_faces
    """
    loaded = read_text(policy)
    if as_json:
        typer.echo(loaded.model_dump_json(indent=2, exclude_none=True))
        return
    typer.echo(f"{loaded.name}  version {loaded.version}  {loaded.mode.value}  digest {loaded.digest[:12]}")
    if loaded.metadata.description:
        typer.echo(printable(loaded.metadata.description, None))
    for line in _beside_rules(loaded):
        typer.echo(printable(f"  {line}", None))
    for rule in loaded.rules:
        when = rule.when.model_dump(mode="json", exclude_none=True, exclude={"channels"})
        conditions = f", when {json.dumps(when)}" if when else ""
        channels = ", ".join(channel.value for channel in rule.when.channels)
        typer.echo(f"  {rule.then.action.value:<14}{channels}{conditions}  ({rule.id})")
    typer.echo(f"  {'block':<14}every other channel")


def _beside_rules(policy: Policy) -> list[str]:
    """What else a policy says, one line each. Rules do not tell that they are carried out for a tenth of all calls."""
    said = policy.spec.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    lists = ("names", "patterns")
    shown = {key: value for key, value in said.items() if key not in ("mode", "rules", *lists)}
    lines = [f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in shown.items()]
    for names in policy.spec.names:
        people = (
            f"{len(names.listed)} people" if names.listed else "people"
        )  # a built-in policy is shown without its list
        lines.append(f"names {names.id}: {names.role.value}, {people} in {names.file or 'the policy'}")
    return [*lines, *(f"pattern {pattern.id}: {pattern.regex}" for pattern in policy.spec.patterns)]


@app.command("validate", no_args_is_help=True)
def validate(
    policies: Annotated[
        list[str],
        typer.Argument(help="Names of built-in policies, or files.", metavar="POLICY", autocompletion=complete_policy),
    ],
) -> None:
    """Check policies: language, lists and patterns. Ends with 2 if one is wrong.

    Example: apl-guard policy validate mine.yaml
    """
    from apl_guard.in_force import PolicyInForce

    wrong = False
    for name in policies:
        try:
            policy = PolicyInForce(Policy.load(name)).policy
        except PolicyInvalid as error:
            wrong = True
            typer.echo(f"wrong {error}")
        else:
            typer.echo(f"ok    {policy.name}  version {policy.version}  digest {policy.digest[:12]}")
    if wrong:
        raise typer.Exit(2)


@app.command("test", no_args_is_help=True)
def run_tests(policy: PolicyName, as_json: Json = False) -> None:
    """Run the tests in a policy. Ends with 1 if one fails, or if there is none.

    Example: apl-guard policy test mine.yaml
    """
    from apl_guard.in_force import PolicyInForce

    loaded = Policy.load(policy)
    failures = {failure.test: failure.text for failure in PolicyInForce(loaded).run_tests()}
    results = [(case.name, failures.get(case.name)) for case in loaded.tests]
    if as_json:
        typer.echo(json.dumps([{"test": name, "ok": fault is None, "fault": fault} for name, fault in results]))
    else:
        for name, fault in results:
            typer.echo(printable(f"ok    {name}" if fault is None else f"FAIL  {name}: {fault}", None))
        if not results:
            typer.echo(f"{loaded.name} has no tests; begin a block `tests:` as in: apl-guard policy init")
    if failures or not results:
        raise typer.Exit(1)


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of policy files, for editors and other checkers.

    Example: apl-guard policy schema > apl-guard-policy.schema.json
    """
    typer.echo(json.dumps(json_schema(), indent=2))


@app.command("init", no_args_is_help=True)
def init(
    file: Annotated[Path, typer.Argument(help="The file to write. It must not exist yet.", metavar="FILE")],
    base: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Copy this built-in policy.",
            show_default="a starter with tests",
            autocompletion=_complete_built_in,
        ),
    ] = None,
) -> None:
    """Write a policy to start from.

    Example: apl-guard policy init mine.yaml
    """
    if base is None:
        name = "".join(c if c.isalnum() and c.isascii() else "_" for c in file.stem.lower()).strip("_")
        content = _STARTER.format(name=name or "mine")
    elif base in built_in_policies():
        content = built_in_policies()[base].read_text(encoding="utf-8")
    else:
        raise PolicyInvalid(
            f"no built-in policy; there are: {', '.join(sorted(built_in_policies()))}"
            f"{did_you_mean(base, built_in_policies())}",
            where=repr(base),
        )
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(content)
    except OSError as error:
        raise StorageFailed(f"cannot be written ({error.strerror}); nothing was changed", path=file) from error
    typer.echo(f"{file}  next: apl-guard policy {'test' if base is None else 'validate'} {file}")


app.command("diff", no_args_is_help=True)(diff_policies)
app.command("explain", no_args_is_help=True)(explain_prompt)
app.command("replay", no_args_is_help=True)(replay_log)
