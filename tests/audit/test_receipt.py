"""A receipt convinces somebody who has nothing but the public key, and nobody of anything else."""

import copy as copies
import json
import shutil

import mutants
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from independent_verifier import check_receipt as check_by_the_book
from logs import TORTURE

from apl_guard import InvalidInput
from apl_guard.audit.checkpoint import Checkpoint
from apl_guard.audit.durable import DurableLog
from apl_guard.audit.merkle import Tree, inclusion_proof, leaf_hash
from apl_guard.audit.receipt import MAX_BYTES, check_receipt, prove, prove_consistency
from apl_guard.audit.seal_key import KeyState, SealKey, key_root, public_keys
from apl_guard.audit.witness import CHECKPOINTS


def public_key(whole):
    return json.loads((whole / "log" / "log.json").read_text())["root"]


def test_every_decision_has_a_receipt_that_another_implementation_accepts(whole):
    """Over several generations of keys, with nothing but hashlib and Ed25519."""
    for number in (0, 1, 37, 89):
        decision = f"{number:032x}"
        receipt = json.loads(json.dumps(prove(whole / "log", decision)))

        assert [r.fields["event"] for r in check_receipt(receipt, public_key(whole))] == [
            "guard.decision",
            "guard.outcome",
        ]
        by_the_book = check_by_the_book(receipt, public_key(whole))
        assert {r["decision_id"] for r in by_the_book} == {decision}
        assert check_receipt(json.dumps(receipt).encode(), public_key(whole))


def test_a_receipt_under_another_key_proves_nothing(whole):
    """Whatever key it names itself."""
    receipt = prove(whole / "log", f"{5:032x}")

    with pytest.raises(InvalidInput, match="does not belong to the log"):
        check_receipt(receipt, "00" * 32)


@pytest.fixture(scope="module")
def receipts(whole):
    """Under the first generation of keys, and under a late one."""
    return [prove(whole / "log", f"{number:032x}") for number in (3, 80)]


@settings(max_examples=10_000 if TORTURE else 100)
@given(data=st.data())
def test_a_changed_receipt_proves_nothing(whole, receipts, data):
    """Any text or number in it that matters, changed."""
    receipt = copies.deepcopy(data.draw(st.sampled_from(receipts)))
    places = [(receipt, "decision_id"), (receipt, "log"), (receipt, "epochs"), (receipt, "kind")]
    for group in ("generations", "checkpoints", "records"):
        for entry in receipt[group]:
            places += [(entry, "line")] + ([(entry, "key")] if "key" in entry else [])
            steps = entry["path"] if "path" in entry else entry["proof"]
            places += [(steps, i) for i in range(len(steps))]
    holder, name = data.draw(st.sampled_from(range(len(places))).map(places.__getitem__))
    before = holder[name]
    if isinstance(before, int):
        holder[name] = before + data.draw(st.integers(1, 5))
    else:
        at = data.draw(st.integers(0, len(before) - 1))
        holder[name] = before[:at] + data.draw(st.sampled_from("0123456789abcdefxyz\n")) + before[at + 1 :]
    if holder[name] == before:
        return

    with pytest.raises(InvalidInput):
        check_receipt(receipt, public_key(whole))


@settings(max_examples=10_000 if TORTURE else 60)
@given(st.binary(max_size=200) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_anything_else_is_no_receipt(content):
    """Never another error."""
    with pytest.raises(InvalidInput):
        check_receipt(content.encode() if isinstance(content, str) else content, "00" * 32)


@pytest.mark.parametrize(
    ("change", "why"), [({"records": []}, "no records"), ({"records": [], "kind": "another"}, "is not 'apl-guard")]
)
def test_a_receipt_of_nothing_proves_nothing(whole, receipts, change, why):
    """However well its checkpoints are signed."""
    with pytest.raises(InvalidInput, match=why):
        check_receipt(receipts[0] | change, public_key(whole))


def test_a_receipt_of_many_megabytes_is_not_read():
    """It comes from anybody."""
    with pytest.raises(InvalidInput, match="larger than"):
        check_receipt(b" " * (MAX_BYTES + 1), "00" * 32)


@pytest.fixture
def live(folders):
    """A log under the first key of its generation, with two checkpoints; and that key, which somebody took."""
    log = folders[0]
    with DurableLog(log) as durable:
        for decision in ("d1", "d2"):
            durable.append("guard.decision", {"decision_id": decision}, decision=decision)
            durable.seal()
    (state,) = SealKey(log / "keys" / "seal.key").read()
    assert (state.generation, state.epoch) == (0, 0)
    return log, state


def test_a_receipt_under_keys_that_somebody_announced_with_the_live_key_proves_nothing(live):
    """A generation of keys is announced by the last key of the one before, and by no other."""
    log, state = live
    receipt = prove(log, "d1")
    (signed,) = receipt["checkpoints"]
    fields = Checkpoint.parse(signed["line"].encode()).__dict__
    mine = KeyState(1, 0, 0, bytes(32))
    keys = public_keys(mine.seed, receipt["epochs"])
    announcing = Checkpoint(**fields | {"next": key_root(keys).hex()}).signed(state)
    under = Checkpoint(**fields | {"generation": 1}).signed(mine)
    path = inclusion_proof([leaf_hash(key) for key in keys], 0)

    forged = receipt | {
        "generations": [signed | {"line": announcing.decode()}],
        "checkpoints": [{"line": under.decode(), "key": keys[0].hex(), "path": [step.hex() for step in path]}],
    }
    with pytest.raises(InvalidInput, match="not announced by the last"):
        check_receipt(forged, receipt["public_key"])
    assert check_receipt(receipt, receipt["public_key"])


def test_a_checkpoint_that_was_signed_over_another_past_continues_none(live):
    """With the live key, whoever has it."""
    log, state = live
    lines = (log / CHECKPOINTS).read_bytes().splitlines()
    fields = Checkpoint.parse(lines[-1]).__dict__
    lines[-1] = Checkpoint(**fields | {"history": "00" * 32}).signed(state)
    (log / CHECKPOINTS).write_bytes(b"".join(line + b"\n" for line in lines))

    with pytest.raises(InvalidInput, match="does not continue"):
        prove_consistency(log, 0, len(lines) - 1)


def test_a_log_that_was_changed_gives_no_receipt(copy):
    """Rather than one that nobody could check."""
    log, _ = copy
    segment = sorted((log / "segments").iterdir())[0]
    lines = segment.read_bytes().splitlines()
    found = next(n for n, line in enumerate(lines) if b'"guard.decision"' in line)
    mutants.forge(log, segment, found)

    with pytest.raises(InvalidInput, match="does not prove it"):
        prove(log, json.loads(lines[found])["decision_id"])


def test_what_is_not_sealed_yet_has_no_receipt(folders):
    """And the message says when it will."""
    log = DurableLog(folders[0])
    log.append("guard.decision", {"decision_id": "d1"}, decision="d1", opens=True)

    with pytest.raises(InvalidInput, match="within a second"):
        prove(folders[0], "d1")
    with pytest.raises(InvalidInput, match="no decision"):
        prove(folders[0], "d2")
    log.seal()
    assert prove(folders[0], "d1")["decision_id"] == "d1"
    log.close()


def test_any_later_checkpoint_continues_any_earlier_one(whole, copy):
    """Of the same writer and of others; in a log with an exchanged record it does not."""
    last = (whole / "log" / CHECKPOINTS).read_bytes().count(b"\n") - 1
    lines = (whole / "log" / CHECKPOINTS).read_text().splitlines()
    for first, second in [(0, 1), (0, last), (3, 4), (5, last - 1)]:
        proof = prove_consistency(whole / "log", first, second)
        assert (proof["first"], proof["second"]) == (lines[first], lines[second])
        is_one_writer = len({Checkpoint.parse(line.encode()).writer for line in (lines[first], lines[second])}) == 1
        assert (proof["records"] is not None) is is_one_writer
    for first, second in [(1, 1), (2, 1), (0, last + 1), (-1, 2)]:
        with pytest.raises(InvalidInput, match="expected two of"):
            prove_consistency(whole / "log", first, second)

    segment = sorted((copy[0] / "segments").iterdir())[0]
    segment.write_bytes(segment.read_bytes().replace(b"anonymize", b"allowance", 1))
    with pytest.raises(InvalidInput, match="do not begin"):
        prove_consistency(copy[0], 0, 1)


def test_a_witness_tells_a_receipt_that_was_signed_with_a_stolen_key(copy, run, tmp_path):
    """For what never was in the log that it knows: not vouched for at first, tampered once the log has gone on."""
    log, witness = copy
    key = json.loads((log / "log.json").read_text())["root"]
    receipt, fork = tmp_path / "receipt.json", tmp_path / "fork"
    shutil.copytree(log, fork)

    def verdict(place, decision, *witnesses):
        assert run("prove", place, decision, "--output", receipt)[0] == 0
        options = [option for folder in witnesses for option in ("--witness", folder)]
        code, out, _ = run("verify", receipt, "--public-key", key, *options, "--json")
        assert json.loads(out)["verdict"] == {0: "valid", 1: "tampered", 3: "unverifiable"}.get(code)
        return code

    assert verdict(log, f"{80:032x}", witness) == 0
    for place, decision in ((fork, "never"), (log, "real")):
        with DurableLog(place, [witness] if place == log else []) as durable:
            durable.append("guard.decision", {"decision_id": decision}, decision=decision)
        assert verdict(fork, "never") == 0
        assert verdict(fork, "never", witness) == (3 if place == fork else 1)
    assert verdict(log, "real", witness) == 0
    assert verdict(log, "real", witness, tmp_path) == 3  # where nothing of the log is kept
    assert run("verify", receipt, "--public-key", key, "--witness", log / "nothing")[0] == 4


def test_checkpoints_without_a_signature_are_not_consistent(copy):
    """However well the hashes in them fit."""
    log, _ = copy
    history, lines = Tree(), []
    for line in (log / CHECKPOINTS).read_bytes().splitlines():
        fields = Checkpoint.parse(line).__dict__ | {"history": history.root.hex(), "timestamp": "2020-01-01T00:00:00Z"}
        lines.append(Checkpoint(**fields).signed(KeyState(0, 0, 0, bytes(32))))
        history.append(leaf_hash(lines[-1]))
    (log / CHECKPOINTS).write_bytes(b"".join(line + b"\n" for line in lines))

    with pytest.raises(InvalidInput, match="signature"):
        prove_consistency(log, 0, len(lines) - 1)
