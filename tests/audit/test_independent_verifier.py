"""The product and a verifier that shares no code with it say the same about any log and receipt."""

import ast
import contextlib
import copy as copies
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import mutants
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from independent_verifier import TamperedError, check_log, is_under, read_checkpoint
from independent_verifier import check_receipt as check_by_the_book
from logs import TORTURE, call, make_log

from apl_guard import InvalidInput
from apl_guard.audit import disk
from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.audit.receipt import check_receipt, prove, prove_consistency
from apl_guard.audit.verify import Verdict, verify_log
from apl_guard.audit.witness import CHECKPOINTS

OPTIONS = LogOptions(segment_bytes=3000, epochs=3, epoch_seconds=0, checkpoint_seconds=1e6)


def snapshot(state):
    """Keep what the log and its witness are now, beside them."""
    for name in ("log", "witness"):
        shutil.copytree(state / name, state / "before" / name, dirs_exist_ok=True)


def torn_log(state):
    """A log with the traces of crashes and failed disks, the last of which nobody has recorded yet."""
    real, number = disk.sync, 0
    for process in range(4):
        durable = DurableLog(state / "log", [state / "witness"], options=OPTIONS)
        for _ in range(8):
            call(durable, number)
            number += 1
        durable.seal()
        chance = random.Random(process)

        def sync(handle, chance=chance):
            if chance.random() < 0.4:
                raise OSError(5, "Input/output error")
            real(handle)

        disk.sync = sync
        with contextlib.suppress(Exception):
            for _ in range(5):
                call(durable, number)
        disk.sync = real
        durable.leave()  # as if the process had died
        with sorted((state / "log" / "segments").iterdir())[-1].open("ab") as stream:
            stream.write([b'{"writer":"', bytes(9), b"", b'{"writer":"'][process])
        if process == 1:
            snapshot(state)


def closed_log(state):
    """A log of several writers, segments and generations of keys."""
    make_log(state / "log", state / "witness", writers=2)
    snapshot(state)
    make_log(state / "log", state / "witness", writers=1)


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Folders, each with a log, its witness, and both as they were before."""
    root = tmp_path_factory.mktemp("bases")
    for name, make in (("closed", closed_log), ("another", closed_log), ("torn", torn_log)):
        (root / name).mkdir()
        make(root / name)
    return root


def tamper(state, bases, chance):
    """Change the log or its witness in one way, by what an attacker or a careless officer has at hand."""
    log, witness = state / "log", state / "witness"
    other = bases / chance.choice(["closed", "another", "torn"])
    other = chance.choice([other, other / "before"])
    segments = sorted((log / "segments").iterdir())
    kept = chance.choice(sorted(witness.iterdir()))
    match chance.randrange(14):
        case 0:  # of every other kind, as often as all of these together
            kinds = [kind for kind in mutants.KINDS if kind != "start the log anew"]
            mutants.mutate(log, chance.choice(kinds), chance)
        case 1:  # mix segments of two logs
            taken = chance.choice(sorted((other / "log" / "segments").iterdir()))
            shutil.copy(taken, log / "segments" / chance.choice([taken.name, chance.choice(segments).name]))
        case 2:  # checkpoints of another log, or of an earlier time
            shutil.copy(other / "log" / CHECKPOINTS, log / CHECKPOINTS)
        case 3:  # roll the log back
            shutil.rmtree(log)
            shutil.copytree(other / "log", log)
        case 4:  # or its witness, or put that of another log in its place
            shutil.rmtree(witness)
            shutil.copytree(other / "witness", witness)
        case 5:  # go on from where it is, without its witness, or with it
            with DurableLog(log, chance.choice([[], [witness]]), options=OPTIONS) as durable:
                call(durable, chance.randrange(100))
        case 6:
            chance.choice([path for path in log.rglob("*") if path.is_file() and path.parent.name != "keys"]).unlink()
        case 7:
            chance.choice([path for path in kept.iterdir()]).unlink()
        case 8:  # cut off or add, anywhere
            folder = chance.choice([log, log / "segments", kept])
            path = chance.choice([path for path in sorted(folder.iterdir()) if path.is_file()])
            content = path.read_bytes()
            added = chance.choice([b"", b"\n", b"{", bytes(3), content[: chance.randrange(200)]])
            path.write_bytes(content[: chance.choice([len(content), chance.randrange(len(content) + 1)])] + added)
        case 9:  # change one byte of the witness
            path = chance.choice(sorted(kept.iterdir()))
            content = bytearray(path.read_bytes())
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            path.write_bytes(content)
        case 10:  # exchange two checkpoints
            lines = (log / CHECKPOINTS).read_bytes().splitlines(keepends=True)
            at = chance.randrange(len(lines) - 1)
            lines[at : at + 2] = lines[at + 1], lines[at]
            (log / CHECKPOINTS).write_bytes(b"".join(lines))
        case 11:  # keep two logs at one place
            shutil.copytree(other / "witness", witness, dirs_exist_ok=True)
        case 12:  # merge two folders
            shutil.copytree(other / "log" / "segments", log / "segments", dirs_exist_ok=True)
        case 13:  # begin a segment, or a writer, of one's own
            writer = chance.choice([segments[-1].name.split(".")[0], "f" * 24])
            place = log / "segments" / f"{writer}.{chance.randrange(30):06d}.jsonl"
            place.write_bytes(chance.choice([b"", segments[0].read_bytes(), segments[-1].read_bytes(), b"x\n", b"x"]))


@settings(max_examples=3_000 if TORTURE else 150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base=st.sampled_from(["closed", "torn"]),
    times=st.sampled_from([0, 1, 1, 1, 2, 3]),
    chance=st.randoms(use_true_random=False),
    has_witness=st.sampled_from([True, True, False]),
)
def test_both_say_the_same_about_any_log(bases, tmp_path, base, times, chance, has_witness):
    """Whole, torn, edited, cut off, mixed with another, gone on with after a copy, signed anew, with any witness."""
    shutil.rmtree(tmp_path / "state", ignore_errors=True)
    state = shutil.copytree(bases / base, tmp_path / "state")
    witnesses = [state / "witness"] if has_witness else []
    for _ in range(times):
        with contextlib.suppress(Exception):  # what was changed before may not let it be changed further
            tamper(state, bases, chance)
    try:
        ours = str(verify_log(state / "log", witnesses).verdict)
    except (InvalidInput, OSError) as error:
        ours = repr(error)

    try:
        theirs = check_log(state / "log", witnesses)
    except TamperedError:
        theirs = "tampered"

    # A log of which too little is left is none for the product, which says that as an error.
    assert theirs == (ours if ours in list(Verdict) else "tampered"), ours


@pytest.fixture(scope="session")
def live(tmp_path_factory):
    """A log whose first signing key is still in use."""
    root = tmp_path_factory.mktemp("live")
    make_log(root / "log", root / "witness", calls=5, writers=1, epoch_seconds=1e9, segment_bytes=2000)
    return root


PIECES = {"segment": 0, "bytes": 1, "suspect": False}
FORGED = {
    "event": ["guard.decision", "audit.segment", "audit.recovery", "audit.close"],
    "previous": [None, 1, "x", [], {}, PIECES, PIECES | {"suspect": 0}, PIECES | {"bytes": 1.0}],
    "dead_writer": [None, "x", 1],
    "torn": [None, [], [1], [{}], "x"],
    "decision_id": [None, "x", 1],
}


@settings(max_examples=1_000 if TORTURE else 100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.floats(0, 0.99),
    changes=st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in FORGED.items()}),
)
def test_both_say_the_same_about_any_record(live, tmp_path, place, changes):
    """Also one of a form that no guard writes, which somebody signed with the live key and gave to the witness."""
    shutil.rmtree(tmp_path / "state", ignore_errors=True)
    state = shutil.copytree(live, tmp_path / "state")
    log, (kept,) = state / "log", (state / "witness").iterdir()
    lines = [(path, n) for path in sorted((log / "segments").iterdir()) for n in range(path.read_bytes().count(b"\n"))]
    mutants.forge(log, *lines[int(place * len(lines))], changes)
    mutants.sign_anew(log)
    shutil.copy(log / CHECKPOINTS, kept / CHECKPOINTS)

    try:
        theirs = check_log(log, [state / "witness"])
    except TamperedError:
        theirs = "tampered"

    assert theirs == str(verify_log(log, [state / "witness"]).verdict)


@pytest.mark.parametrize(
    ("at", "changes", "verdict"),
    [
        (0, {}, "valid"),
        (0, {"event": "guard.decision"}, "tampered"),
        (0, {"previous": PIECES}, "tampered"),
        (1, {"event": "audit.recovery"}, "tampered"),
        (1, {"event": "audit.recovery", "dead_writer": "x", "torn": []}, "valid"),
        (1, {"torn": 1}, "tampered"),
    ],
)
def test_a_row_begins_with_its_segment_and_records_of_the_log_are_whole(live, tmp_path, at, changes, verdict):
    """Whoever reads a log relies on it, so it is not left to who wrote it."""
    shutil.copytree(live, tmp_path / "state")
    log, (kept,) = tmp_path / "state" / "log", (tmp_path / "state" / "witness").iterdir()
    mutants.forge(log, sorted((log / "segments").iterdir())[0], at, changes)
    mutants.sign_anew(log)
    shutil.copy(log / CHECKPOINTS, kept / CHECKPOINTS)

    assert verify_log(log, [tmp_path / "state" / "witness"]).verdict == verdict


@pytest.fixture(scope="session")
def receipts(bases):
    """Of two logs, under early and late keys, about calls and about decisions that a crash left open."""
    found = [prove(bases / name / "log", f"{number:032x}") for name in ("closed", "another") for number in (2, 50)]
    return [*found, *(prove(bases / "torn" / "log", f"{number:032x}") for number in (3, 8))]


def places_in(content, place=()):
    """Where the texts, numbers and lists of a receipt stand."""
    if place:
        yield place
    for name, each in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(each, dict | list):
            yield from places_in(each, (*place, name))
        else:
            yield (*place, name)


def at(content, place):
    """What stands in one."""
    for name in place:
        content = content[name]
    return content


@settings(max_examples=10_000 if TORTURE else 300)
@given(data=st.data())
def test_both_say_the_same_about_any_receipt(receipts, data):
    """Whole, edited, cut off, or put together from several: both accept it, with the same records, or neither does."""
    receipt, other = (copies.deepcopy(data.draw(st.sampled_from(receipts))) for _ in range(2))
    key = data.draw(st.sampled_from([receipt, receipt, receipt, other]))["public_key"]
    for _ in range(data.draw(st.integers(0, 3))):
        *way, name = data.draw(st.sampled_from(list(places_in(receipt))))
        holder = at(receipt, way)
        with contextlib.suppress(LookupError, TypeError):  # not every receipt has as many entries
            match data.draw(st.sampled_from(["replace", "remove", "repeat", "edit", "another kind"])):
                case "replace":
                    holder[name] = at(other, (*way, name))
                case "remove":
                    del holder[name]
                case "repeat":
                    holder.insert(0, holder[name]) if isinstance(holder, list) else None
                case "edit" if isinstance(holder[name], str):
                    text, place = holder[name], data.draw(st.integers(0, len(holder[name])))
                    holder[name] = text[:place] + data.draw(st.sampled_from('0f"}\n ')) + text[place + 1 :]
                case "edit" if isinstance(holder[name], int):
                    holder[name] += data.draw(st.sampled_from([-1, 1, 2**53]))
                case _:
                    holder[name] = data.draw(st.sampled_from([None, True, 0, 1.0, -1, "", [], {}, [[]], "ff" * 32]))
    try:
        ours = [{"writer": r.writer, "seq": r.seq, "prev": r.prev, **r.fields} for r in check_receipt(receipt, key)]
    except InvalidInput:
        ours = None

    try:
        theirs = check_by_the_book(receipt, key)
    except TamperedError:
        theirs = None

    assert ours == theirs


def test_it_is_a_program_for_whoever_has_a_log_or_a_receipt(whole, tmp_path):
    """And one key. It says what it found, and ends in 0 for nothing but what is valid."""
    receipt = prove(whole / "log", f"{3:032x}")
    (tmp_path / "receipt.json").write_text(json.dumps(receipt, indent=2))
    log, witness = whole / "log", whole / "witness"
    program = [sys.executable, str(Path(__file__).with_name("independent_verifier.py"))]
    for arguments, code, verdict in (
        ([log, witness], 0, "valid\n"),
        ([log], 1, "unverifiable\n"),
        ([witness], 1, "tampered: FileNotFoundError"),
        ([tmp_path / "receipt.json", receipt["public_key"]], 0, 'valid\n{"writer": "'),
        ([tmp_path / "receipt.json", "0" * 64], 1, "tampered: "),
    ):
        done = subprocess.run([*program, *map(str, arguments)], capture_output=True, text=True, timeout=600)
        assert (done.returncode, done.stdout.startswith(verdict), done.stderr) == (code, True, ""), done


def test_a_proof_of_consistency_is_checked_by_the_book(whole):
    """By whoever kept the earlier checkpoint: the later one's history holds it, at its place."""
    proof = prove_consistency(whole / "log", 2, 9)
    first, second = (read_checkpoint(proof[each].encode(), None) for each in ("first", "second"))
    place = first["checkpoint"], second["checkpoint"], proof["history"], second["history"]

    is_under(proof["first"].encode(), *place)
    with pytest.raises(TamperedError):
        is_under(proof["first"].encode().replace(b'"closed":false', b'"closed":true'), *place)


def test_it_imports_nothing_of_the_package():
    """Else it would prove nothing."""
    tree = ast.parse(Path(__file__).with_name("independent_verifier.py").read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {each.name for node in ast.walk(tree) if isinstance(node, ast.Import) for each in node.names}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names | {"cryptography"}
