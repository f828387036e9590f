"""Questions from a shell: what they find, what they refuse, and what they prove."""

import contextlib
import json
import sys
from pathlib import Path

import instant
import pytest
from logs import expected

from apl_guard import Guard, InvalidInput, PolicyBlocked
from apl_guard.audit import AuditLog
from apl_guard.audit.durable import DurableLog
from apl_guard.audit.question import COLUMNS
from apl_guard.cli.audit_questions import query

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the module that the tests there share

from policy_documents import policy


def test_query_groups_and_filters(log, run):
    """The command of the documentation, and its mistakes."""
    code, out, errors = run("query", log, "--since", "1h", "--action", "block", "--group-by", "policy")
    assert code == 0
    assert out.split() == ["count", "policy", str(len(expected(log, action="block"))), "anonymize_faces"]
    assert run("query", log, "--until", "2020-01-01")[1] == "nothing found\n"
    rows = [json.loads(line) for line in run("query", log, "--where", "result=passed", "--json")[1].splitlines()]
    assert [row["result"] for row in rows] == ["passed"] * len(expected(log, result="passed"))
    for wrong in (["--where", "nothing"], ["--where", "nothing=1"], ["--group-by", "line"], ["--since", "yesterday"]):
        code, out, errors = run("query", log, *wrong)
        assert (code, errors.count("\n")) == (2, 1)


def test_an_officer_sees_which_rule_decided(folders, prefix, run):
    """Of one request in its line, of all by the column `rules`; and what decided where no rule did."""
    log, _ = folders
    prompts = {"id": "prompts", "when": {"channels": ["prompt"]}, "then": {"action": "anonymize"}}
    strict = {"id": "strict", "when": {"channels": ["prompt"], "tenants": ["acme"]}, "then": {"action": "block"}}
    with AuditLog(log) as audit:
        guard = Guard(instant.Pipe(), policy(prompts, strict), prefix=prefix, audit=audit)
        for tenant, more in (("acme", {}), ("acme", {}), (None, {"callback": 1}), (None, {"\x1b[2J": 1}), (None, {})):
            with guard.context(tenant=tenant), contextlib.suppress(PolicyBlocked):
                guard("a cat", **more)

    lines = run("query", log, "--event", "guard.decision")[1].splitlines()
    assert [line.partition("  by ")[2] for line in reversed(lines)] == [
        *("strict", "strict", "no rule applies", "unknown argument", "prompts")
    ]
    grouped = run("query", log, "--result", "blocked", "--group-by", "rules", "--json")[1].splitlines()
    assert [tuple(json.loads(line).values()) for line in grouped] == [(None, 2), ("strict", 2)]
    assert run("query", log, "--where", "rules=strict", "--result", "blocked")[1].count("\n") == 2
    assert run("export", log, "--csv")[1].count(",strict,,prompt,") == 2


def test_calls_without_a_value_can_be_asked_for(folders, prefix, run):
    """Which images went out without a prefix, and who named no tenant; records that can have neither are no answer."""
    named = {"id": "named", "when": {"channels": ["prompt"], "names": ["stars"]}, "then": {"action": "anonymize"}}
    rest = {"id": "rest", "when": {"channels": ["prompt"]}, "then": {"action": "allow"}}
    stars = {"id": "stars", "people": [{"name": "Mara Voss"}]}
    ids = {}
    with AuditLog(folders[0]) as audit:
        guard = Guard(instant.Pipe(), policy(named, rest, names=[stars]), prefix=prefix, audit=audit)
        for prompt, tenant in (("Mara Voss", None), ("a cat", "acme"), ("a dog", None)):
            with guard.context(tenant=tenant):
                ids[prompt] = guard.generate(prompt).decision.id
        with pytest.raises(PolicyBlocked):
            guard("a cat", callback=1)

    def found(*options):
        code, out, errors = run("query", folders[0], *options, "--json")
        assert (code, errors) == (0, "")
        return [(row["event"], row["decision_id"]) for row in map(json.loads, out.splitlines())]

    outcomes = [("guard.outcome", ids["a dog"]), ("guard.outcome", ids["a cat"])]
    assert found("--where", "prefix=", "--result", "passed") == outcomes
    assert found("--where", "prefix=", "--tenant", "acme") == outcomes[1:]
    assert found("--where", "prefix=", "--where", "images=1", "--where", "tenant=") == outcomes[:1]
    assert found("--tenant", "", "--action", "allow") == [("guard.decision", ids["a dog"])]
    assert {event for event, _ in found("--where", "prefix=")} == {"guard.outcome"}
    assert found("--where", "policy=") == []


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"mode": "shadow"}, "shadow"),
        ({"rollout": {"percent": 0, "key": "request", "salt": "a"}}, "outside of the rollout"),
    ],
)
def test_what_was_not_done_does_not_look_like_what_was(folders, prefix, run, spec, why):
    """A line says that a block was recorded and not carried out, and how the image went out."""
    strict = {"id": "strict", "when": {"channels": ["prompt"]}, "then": {"action": "block"}}
    with AuditLog(folders[0]) as audit:
        Guard(instant.Pipe(), policy(strict, **spec), prefix=prefix, audit=audit)("a cat")

    lines = {line.split("  ")[1]: line for line in run("query", folders[0])[1].splitlines()}
    assert lines["guard.decision"].endswith(f"  p  block (not done: {why})  by strict")
    assert lines["guard.outcome"].endswith("  passed  protection missing")


def test_help_names_every_column():
    """Or somebody who is no programmer has to guess one before the error names them."""
    assert ", ".join(COLUMNS) in " ".join(query.__doc__.split())


@pytest.mark.parametrize("as_what", [[], ["--json"], ["--group-by", "event"]])
def test_an_answer_that_is_cut_off_says_so(log, run, as_what):
    """Or somebody would take the newest hundred for all. One that is not cut off says nothing."""
    heads = int("--group-by" in as_what)
    most = len(run("query", log, *as_what)[1].splitlines()) - heads
    for limit, noted in ((most - 1, f"there are more than these {most - 1}"), (most, "")):
        code, out, errors = run("query", log, *as_what, "--limit", str(limit))
        assert (code, len(out.splitlines())) == (0, limit + heads)
        assert noted in errors if noted else errors == ""


@pytest.mark.parametrize(
    ("options", "notes"),
    [
        (["--event", "decision"], ["no record has event 'decision'; there are: guard.decision, guard.outcome, "]),
        (["--tenant", "acmee", "--result", "passed"], ["no record has tenant 'acmee'; there are: "]),
        (["--where", "policy_version=99", "--policy", "p"], ["has policy 'p'", "has policy_version '99'; there are: "]),
        (["--decision", "f" * 32], [f"no record has decision_id '{'f' * 32}'\n"]),
        (["--tenant", "acme", "--until", "2020-01-01"], []),
    ],
)
def test_what_is_misspelt_is_not_taken_for_what_never_happened(log, run, options, notes):
    """Nothing is found either way; of a value that no record has, that is said."""
    for json_too in ([], ["--json"]):
        code, out, errors = run("query", log, *options, *json_too)
        assert (code, out) == (0, "" if json_too else "nothing found\n")
        assert errors.count("\n") == len(notes)
        for note in notes:
            assert note in errors


def test_a_value_that_looks_like_a_number_is_found_as_text_and_as_number(folders, prefix, run):
    """A tenant may be called 123; a version is a number. No digit of any script is a traceback."""
    log, _ = folders
    with AuditLog(log) as audit:
        guard = Guard(instant.Pipe(), prefix=prefix, audit=audit)
        for tenant in ("123", "1e3", "other", "\u00b2"):
            with guard.context(tenant=tenant):
                guard("a cat")
    for tenant in ("123", "1e3", "\u00b2"):
        assert run("query", log, "--where", f"tenant={tenant}")[1].count("\n") == 1
    version = expected(log, event="guard.decision")[0]["policy"]["version"]
    where = ["--event", "guard.decision", "--where", f"policy_version={version}"]
    assert run("query", log, *where)[1].count("\n") == 4
    for wrong in ("\u00b2h", "99999999999d", "0001-01-01T00:00+14:00", "-1h", "9" * 30 + "s"):
        code, _, errors = run("query", log, "--since", wrong)
        assert (code, errors.count("\n")) == (2, 1), wrong


def test_tail_and_stats(log, run):
    """The newest records in order, and counts that add up."""
    lines = run("tail", log, "-n", "3")[1].splitlines()
    assert len(lines) == 3
    assert lines == sorted(lines)
    assert "audit.close" in lines[-1]
    found = json.loads(run("stats", log, "--json")[1])
    events = found["events"]
    assert (
        events["guard.decision"] == events["guard.outcome"] == sum(found["results"].values()) - events["guard.refusal"]
    )
    assert found["open"] == {"decisions without outcome": 0}
    assert "guard.refusal" in run("stats", log)[1]


@pytest.mark.parametrize("images", [{}, {"images": None}, {"images": "many"}, {"images": [3]}, {"images": 2.5}])
def test_an_outcome_that_counts_no_images_counts_as_none_in_the_statistics(folders, run, images):
    """Records may be of another version, or of somebody else."""
    log, _ = folders
    durable = DurableLog(log, [])
    for number, counted in enumerate(({"images": 2}, images)):
        about = {"decision_id": str(number), "result": "passed", "protection": "applied", **counted}
        durable.append("guard.outcome", about, decision=str(number), closes=True)
    durable.close()

    assert json.loads(run("stats", log, "--json")[1])["images"] == {"applied": 2}


def test_prove_and_verify_a_receipt(log, run, tmp_path):
    """From the shell: made by one, checked by another, changed by a third."""
    decision = expected(log, event="guard.decision")[0]["decision_id"]
    receipt = tmp_path / "receipt.json"
    key = json.loads((log / "log.json").read_text())["root"]

    assert run("prove", log, decision, "--output", receipt)[0] == 0
    assert run("verify", receipt, "--public-key", key)[0] == 0
    assert run("verify", receipt)[0] == 3
    assert run("verify", receipt, "--public-key", "0" * 64)[0] == 1
    receipt.write_text(receipt.read_text().replace("anonymize_faces", "unsafe_allow_al"))
    assert run("verify", receipt, "--public-key", key)[0] == 1
    assert run("prove", log, "nothing")[0] == 2
    assert run("consistency", log, 0, 1)[0] == 0
    assert run("consistency", log, 1, 0)[0] == 2


def test_a_call_whose_end_is_not_on_record_says_so(folders, prefix, run):
    """Or it looks as if only a filter left it out. One that ended says nothing of the kind."""
    log, witness = folders
    ids = []
    with AuditLog(log, witness=witness) as audit:
        guard = Guard(instant.Pipe(), prefix=prefix, audit=audit)
        ids.append(guard.generate("a cat").decision.id)
        audit._durable.append("guard.decision", {"decision_id": "d1"}, decision="d1", opens=True)

    for decision, is_open in ((ids[0], False), ("d1", True)):
        code, out, errors = run("query", log, "--decision", decision, "--event", "guard.decision")
        assert (code, out.count("\n"), "no outcome of this call" in errors) == (0, 1, is_open)
    assert run("prove", log, "d1")[0] == 0


def test_erase_and_reveal_from_the_shell(folders, prefix, run):
    """What was encrypted is shown until it is erased."""
    log, witness = folders
    with AuditLog(log, witness=witness, capture="encrypted") as audit:
        guard = Guard(instant.Pipe(), prefix=prefix, audit=audit)
        with guard.context(subject="account-7"):
            guard("a cat")
    decision = expected(log, event="guard.decision")[0]["decision_id"]

    assert json.loads(run("reveal", log, decision, "--witness", witness)[1]) == {"prompt": ["a cat"]}
    assert run("erase", log, "--subject", "account-7", "--witness", witness)[0] == 0
    assert "erased" in run("reveal", log, decision, "--witness", witness)[1]
    assert run("erase", log, "--subject", "account-7", "--witness", witness)[0] == 2
    assert run("erase", log)[0] == 2
    assert run("verify", log, "--witness", witness)[0] == 0


@pytest.mark.parametrize(
    "command", ["query", "tail", "stats", "policies", "prove", "consistency", "export", "erase", "reveal", "reindex"]
)
def test_a_folder_without_a_log_is_one_line_and_code_2(run, tmp_path, command):
    """For every command, with the arguments that it needs."""
    more = {
        "prove": ["d"],
        "reveal": ["d"],
        "consistency": ["0", "1"],
        "export": ["--csv"],
        "erase": ["--decision", "d"],
    }
    code, _, errors = run(command, tmp_path, *more.get(command, []))

    assert code in {2, 4}
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query", "--action", "blocked"], "'blocked' is not one of"),
        (["query", "--result", "block"], "expected one of passed, blocked"),
        (["query", "--group-by", "polcy"], "did you mean 'policy'?"),
        (["query", "--until", "tomorrow"], "--until: found 'tomorrow'"),
        (["query", "--limit", "9" * 30], "'--limit'"),
        (["export", "--dsa", "--action", "blocked"], "'blocked' is not one of"),
    ],
)
def test_a_value_that_no_record_can_have_is_an_error(log, run, arguments, message):
    """Not an empty answer, from which somebody would conclude that nothing happened."""
    code, out, errors = run(arguments[0], log, *arguments[1:])
    assert (code, out) == (2, "")
    assert message in " ".join(errors.replace("│", " ").split())


def test_that_somebody_looked_at_a_text_is_no_call(folders, prefix, run):
    """The records of it name the decision, whose tenant is not asked for them."""
    log, _ = folders
    with AuditLog(log, capture="encrypted") as audit:
        guard = Guard(instant.Pipe(), prefix=prefix, audit=audit)
        with guard.context(tenant="acme", subject="account-7"):
            guard("a cat")
    decision = expected(log, event="guard.decision")[0]["decision_id"]
    assert run("reveal", log, decision)[0] == 0
    assert expected(log, event="audit.access")

    groups = run("query", log, "--group-by", "tenant", "--group-by", "result", "--json")[1].splitlines()
    assert list(map(json.loads, groups)) == [{"tenant": "acme", "result": "passed", "count": 1}]


def test_a_question_about_a_decision_and_its_outcome_is_about_the_call(folders, prefix, run):
    """Whose tenant, policy, subject or prompt stands in one record, and whose result in another."""
    log, _ = folders
    with AuditLog(log) as audit:
        guard = Guard(instant.Pipe(), prefix=prefix, audit=audit)
        for tenant, prompts in (
            ("acme", ["a cat", "break", "a dog"]),
            ("other", ["break", "a cat"]),
            (None, ["a cat"]),
        ):
            for prompt in prompts:
                with guard.context(tenant=tenant, subject=f"of {tenant}"), contextlib.suppress(RuntimeError):
                    guard(prompt)
        with guard.context(tenant="acme"), pytest.raises(InvalidInput):
            guard(7)

    def ask(*options):
        return [json.loads(line) for line in run("query", log, "--json", *options)[1].splitlines()]

    decided = {r["decision_id"]: r for r in expected(log, event="guard.decision")}
    for tenant in ("acme", "other"):
        for result in ("passed", "backend_error"):
            done = expected(log, event="guard.outcome", result=result)
            wanted = [r["decision_id"] for r in done if decided[r["decision_id"]]["tenant"] == tenant]
            found = ask("--tenant", tenant, "--result", result)
            assert wanted
            assert sorted(r["decision_id"] for r in found) == sorted(wanted)
            assert {r["event"] for r in found} == {"guard.outcome"}
    assert [r["event"] for r in ask("--tenant", "acme", "--result", "invalid")] == ["guard.refusal"]
    assert len(ask("--prompt", "A  cat", "--result", "passed")) == 3
    assert len(ask("--subject", "of acme", "--result", "passed")) == 2
    assert len(ask("--policy", "anonymize_faces", "--where", "images=1")) == 4
    for asked, count in ((("--tenant", "acme"), 3), (("--subject", "of acme"), 3), (("--prompt", "a cat"), 3)):
        found = ask(*asked, "--event", "guard.outcome")
        assert [r["event"] for r in found] == ["guard.outcome"] * count
    groups = {(r["tenant"], r["result"]): r["count"] for r in ask("--group-by", "tenant", "--group-by", "result")}
    assert groups == {
        **{("acme", "passed"): 2, ("acme", "backend_error"): 1, ("acme", "invalid"): 1},
        **{("other", "passed"): 1, ("other", "backend_error"): 1, (None, "passed"): 1},
    }
    assert len(ask("--tenant", "acme")) == 4
