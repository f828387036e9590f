"""Records that no reader could take, sealed with the log's key: `verify` finds them, no question breaks on them."""

import json

import pytest
from logs import records

from apl_guard.audit.checkpoint import Checkpoint
from apl_guard.audit.merkle import Tree, leaf_hash
from apl_guard.audit.record import Record, encode_line
from apl_guard.audit.seal_key import SealKey
from apl_guard.audit.verify import Verdict, verify_log
from apl_guard.audit.witness import CHECKPOINTS

WRITER = "e" * 24
TIME = "2026-03-01T10:00:00.000000Z"


def body(event, timestamp=TIME, **fields):
    return json.dumps({"event": event, "timestamp": timestamp, **fields}, separators=(",", ":")).encode()[1:]


LAST = body("guard.decision", decision_id="hidden", action="block", effective_action="block", policy={"name": "p"})
UNREADABLE = {
    "no JSON": b'"event":"guard.decision",nonsense}',
    "a key twice": LAST.replace(b'"action":"block"', b'"action":"block","action":"allow"'),
    "a key twice, deeper": LAST.replace(b'"name":"p"', b'"name":"p","name":"q"'),
    "no number": LAST.replace(b'"p"', b"NaN"),
    "infinite": LAST.replace(b'"p"', b"1e400"),
    "no time": body("guard.decision", "~~~~", decision_id="x"),
    "another spelling of a time": body("guard.decision", "2026-03-01 10:00:00", decision_id="x"),
    "a policy that is a text": body("guard.decision", decision_id="x", policy="p"),
    "an id that is a list": body("guard.decision", decision_id=["x"]),
    "reasons that are a number": body("guard.decision", decision_id="x", reasons=5),
    "a reason that is a text": body("guard.decision", decision_id="x", reasons=["r"]),
    "channels that are a number": body("guard.decision", decision_id="x", channels=7),
    "a subject that is a number": body("guard.decision", decision_id="x", subject=7),
    "a text that is none": body("guard.decision", decision_id="x", subject="a" * 64, enc={"kid": "k", "nonce": 5}),
    "a gap that names nothing": body("audit.gap", records=[1]),
}


def seal(log, witness, bodies, timestamp=TIME):
    """A writer with these records behind its first, sealed with the live key, and witnessed."""
    identity = json.loads((log / "log.json").read_bytes())["log"]
    first = body("audit.segment", log=identity, segment=0, previous=None, size=0, peaks=[], open=[])
    tree, previous, lines = Tree(), "0" * 64, []
    for number, each in enumerate([first, *bodies]):
        lines.append(encode_line(WRITER, number, previous, each))
        tree.append(leaf_hash(lines[-1]))
        previous = leaf_hash(lines[-1]).hex()
    (log / "segments" / f"{WRITER}.000000.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    rows, history = (log / CHECKPOINTS).read_bytes().splitlines(), Tree()
    for row in rows:
        history.append(leaf_hash(row))
    fields = Checkpoint.parse(rows[-1]).__dict__ | {
        **{"number": len(rows), "writer": WRITER, "size": tree.size, "root": tree.root.hex(), "closed": True},
        **{"history": history.root.hex(), "timestamp": timestamp},
    }
    key = SealKey(log / "keys" / "seal.key").read()[-1]
    for place in (log, *witness.iterdir()):
        with (place / CHECKPOINTS).open("ab") as stream:
            stream.write(Checkpoint(**fields).signed(key) + b"\n")


DSA = ["export", "--dsa", "--territory", "EU"]


@pytest.mark.parametrize("unreadable", UNREADABLE.values(), ids=UNREADABLE)
def test_a_record_that_hides_what_follows_is_found(copy, run, unreadable):
    """What follows it is in no answer, so the log is not called valid; answers hold the rest and say what they lack."""
    log, witness = copy
    before = records(log)
    seal(log, witness, [unreadable, LAST])

    report = verify_log(log, [witness])

    assert report.verdict == Verdict.TAMPERED
    assert any(f"{WRITER}: record 1 cannot be read" in finding for finding in report.findings)
    for command in (["query", "--limit", 1000, "--json"], ["tail", "-n", 1000, "--json"]):
        code, out, _ = run(command[0], log, *command[1:])
        shown = [json.loads(line) for line in out.splitlines()]
        assert (code, len(shown)) == (0, len(before) + 1)
        assert shown.count(next(r for r in shown if r["writer"] == WRITER)) == 1
    for command in (["stats"], ["policies"], ["export", "--csv"], ["query"], ["tail"], DSA):
        assert run(command[0], log, *command[1:])[0] == 0


def test_one_that_can_be_read_hides_nothing(copy):
    """Whoever has the key may write from then on what a log writes."""
    log, witness = copy
    seal(log, witness, [LAST])

    assert verify_log(log, [witness]).verdict == Verdict.VALID
    assert Record.parse(encode_line(WRITER, 1, "0" * 64, LAST)).fields["decision_id"] == "hidden"


def test_a_text_without_a_key_of_a_subject_is_no_text(copy, run):
    """Nor is what a record names by a path outside of the keys: nothing there is read, and nothing destroyed."""
    log, witness = copy
    outside = log.parent / "outside.key"
    outside.write_bytes(b"of somebody else")
    (log / "keys" / "subjects").mkdir()
    enc = {"kid": "k", "nonce": "", "ct": ""}
    away = body("guard.decision", decision_id="away", subject="../../../outside", enc=enc)
    seal(log, witness, [body("guard.decision", decision_id="none", enc=enc), away])

    assert "not recorded" in run("reveal", log, "none", "--witness", witness)[1]
    for command in (
        ["erase", log, "--decision", "none"],
        ["reveal", log, "away"],
        ["erase", log, "--decision", "away"],
    ):
        code, _, errors = run(*command, "--witness", witness)
        assert code != 0
        assert any(why in errors for why in ("holds no text", "no name of a subject"))
    assert outside.read_bytes() == b"of somebody else"


def test_a_table_can_hold_half_a_surrogate_pair(copy, run, tmp_path):
    """Spelt out, in a file as on a terminal."""
    log, witness = copy
    seal(log, witness, [LAST.replace(b'"p"', b'"\\ud800"')])

    assert run("export", log, "--csv", "--output", tmp_path / "calls.csv")[0] == 0
    assert "\\ud800" in (tmp_path / "calls.csv").read_text()
