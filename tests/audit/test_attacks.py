"""Attacks by somebody who has the log and even its signing key, such as those that broke systemd's sealed journal."""

import contextlib
import json
import shutil

import mutants
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import TORTURE, call, make_log

from apl_guard import AuditUnavailable
from apl_guard.audit.checkpoint import Checkpoint, Identity, key_file
from apl_guard.audit.durable import DurableLog, LogOptions
from apl_guard.audit.merkle import Tree, leaf_hash
from apl_guard.audit.record import Record, encode_body, encode_line
from apl_guard.audit.seal_key import EPOCHS, KeyState, SealKey, public_keys
from apl_guard.audit.verify import Verdict, verify_log
from apl_guard.audit.witness import CHECKPOINTS


def public_key(log):
    return json.loads((log / "log.json").read_text())["root"]


def live_key(log):
    return SealKey(log / "keys" / "seal.key").read()[-1]


def sealed(log):
    """The lines of its checkpoints, and the tree over them."""
    rows, history = (log / CHECKPOINTS).read_bytes().splitlines(), Tree()
    for row in rows:
        history.append(leaf_hash(row))
    return rows, history


class TestForgedWithTheLiveKey:
    """CVE-2023-31439: the verifier did not check that old entries were sealed with the key of their own epoch."""

    def test_each_in_its_own_epoch(self, copy):
        """The old epochs' keys are gone, the signature does not fit."""
        log, _ = copy
        key = public_key(log)
        mutants.forge(log, sorted((log / "segments").iterdir())[0], 1)
        mutants.sign_anew(log)

        report = verify_log(log, public_key=key)

        assert report.verdict == Verdict.TAMPERED
        assert any("not signed with the key of epoch 0.0" in finding for finding in report.findings)

    def test_all_in_the_epoch_of_the_live_key(self, copy):
        """A log whose epochs do not begin at the beginning is none."""
        log, _ = copy
        key, live = public_key(log), live_key(log)
        history, lines = Tree(), []
        for line in (log / CHECKPOINTS).read_bytes().splitlines():
            row = Checkpoint.parse(line).__dict__
            row |= {"generation": live.generation, "epoch": live.epoch, "history": history.root.hex(), "next": None}
            lines.append(Checkpoint(**row).signed(live))
            history.append(leaf_hash(lines[-1]))
        (log / CHECKPOINTS).write_bytes(b"".join(line + b"\n" for line in lines))

        report = verify_log(log, public_key=key)

        assert report.verdict == Verdict.TAMPERED
        assert any("cannot follow" in finding for finding in report.findings)

    def test_over_what_was_sealed_before(self, folders):
        """A second checkpoint of the same length, over records that were exchanged under the first."""
        log, witness = folders
        durable = DurableLog(log, [witness])
        call(durable, 0)
        durable.seal()
        mutants.forge(log, next((log / "segments").iterdir()), 1)
        tree, history = Tree(), Tree()
        for line in next((log / "segments").iterdir()).read_bytes().splitlines():
            tree.append(leaf_hash(line))
        rows = (log / CHECKPOINTS).read_bytes().splitlines()
        for row in rows:
            history.append(leaf_hash(row))
        last = Checkpoint.parse(rows[-1])
        assert last.size == tree.size
        forged = last.__dict__ | {"number": len(rows), "root": tree.root.hex(), "history": history.root.hex()}
        with (log / CHECKPOINTS).open("ab") as stream:
            stream.write(Checkpoint(**forged).signed(live_key(log)) + b"\n")

        report = verify_log(log, [witness])
        durable.leave()

        assert report.verdict == Verdict.TAMPERED
        assert any("says something else" in finding for finding in report.findings)

    @pytest.mark.parametrize(
        ("wrong", "told"),
        [
            ({"log": "0" * 32}, "belongs to another log"),
            ({"number": 9}, "says that it is number 9"),
            ({"history": "0" * 64}, "does not follow the checkpoints before it"),
            ({"epoch": 2}, "cannot follow the one before"),
            ({"generation": 1}, "cannot follow the one before"),
            ({"size": 1}, "goes back behind what was sealed"),
            ({"root": "0" * 64}, "says something else about records that were sealed"),
        ],
        ids=lambda given: next(iter(given)) if isinstance(given, dict) else None,
    )
    def test_by_one_more_that_is_wrong_in_one_field(self, folders, wrong, told):
        """Everything else about it, its signature too, is right; without the change it is one that may come."""
        log, witness = folders
        durable = DurableLog(log, [witness])
        call(durable, 0)
        durable.seal()
        rows, history = sealed(log)
        right = Checkpoint.parse(rows[-1]).__dict__ | {"number": len(rows), "history": history.root.hex()}

        found = []
        for fields in (right, right | wrong):
            line = Checkpoint(**fields).signed(live_key(log))
            (log / CHECKPOINTS).write_bytes(b"".join(row + b"\n" for row in (*rows, line)))
            report = verify_log(log, [witness])
            found.append((report.verdict, [finding for finding in report.findings if told in finding] != []))
        durable.leave()

        assert found == [(Verdict.VALID, False), (Verdict.TAMPERED, True)]

    def test_over_nothing_twice(self, folders):
        """Two checkpoints of a writer without records: the second says something else, and is no traceback."""
        log, witness = folders
        durable = DurableLog(log, [witness])
        call(durable, 0)
        durable.seal()
        rows, history = sealed(log)
        last = Checkpoint.parse(rows[-1]).__dict__ | {"writer": "f" * 24, "size": 0, "closed": False}
        for root in (Tree().root.hex(), "0" * 64):
            forged = last | {"number": len(rows), "root": root, "history": history.root.hex()}
            rows.append(Checkpoint(**forged).signed(live_key(log)))
            history.append(leaf_hash(rows[-1]))
        (log / CHECKPOINTS).write_bytes(b"".join(row + b"\n" for row in rows))

        report = verify_log(log, [witness])

        assert report.verdict == Verdict.TAMPERED
        assert any("says something else about records" in finding for finding in report.findings)

    @pytest.mark.parametrize("more", [0, 1])
    def test_over_a_writer_that_was_closed(self, folders, more):
        """Who goes on with its records behind the last one, or only says that it goes on."""
        log, witness = folders
        make_log(log, witness, calls=1, writers=1, segment_bytes=100_000, epoch_seconds=1e6)
        (segment,) = (log / "segments").iterdir()
        rows = (log / CHECKPOINTS).read_bytes().splitlines()
        last, history, tree = Checkpoint.parse(rows[-1]), Tree(), Tree()
        for row in rows:
            history.append(leaf_hash(row))
        for line in segment.read_bytes().splitlines():
            tree.append(leaf_hash(line))
        assert (last.closed, last.size) == (True, tree.size)
        for _ in range(more):
            prev = leaf_hash(segment.read_bytes().splitlines()[-1]).hex()
            line = encode_line(last.writer, tree.size, prev, encode_body("guard.outcome", {"decision_id": "x"}))
            tree.append(leaf_hash(line))
            with segment.open("ab") as stream:
                stream.write(line + b"\n")
        changes = {"number": len(rows), "history": history.root.hex(), "size": tree.size, "root": tree.root.hex()}
        with (log / CHECKPOINTS).open("ab") as stream:
            stream.write(Checkpoint(**last.__dict__ | changes | {"closed": False}).signed(live_key(log)) + b"\n")

        report = verify_log(log, [witness])

        assert report.verdict == Verdict.TAMPERED
        assert any("goes back behind what was sealed" in finding for finding in report.findings)

    def test_with_one_of_two_witnesses(self, folders):
        """Which then agrees with what was forged, and has even more; the other one still speaks."""
        log, witness = folders
        other = witness.with_name("other")
        durable = DurableLog(log, [witness])
        call(durable, 0)
        durable.seal()
        shutil.copytree(witness, other)
        rows = (log / CHECKPOINTS).read_bytes().splitlines()
        last, history = Checkpoint.parse(rows[-1]), Tree()
        for row in rows[:-1]:
            history.append(leaf_hash(row))
        del rows[-1]
        for _ in range(2):
            changes = {"number": len(rows), "history": history.root.hex(), "timestamp": "2026-01-01T00:00:00.000000Z"}
            rows.append(Checkpoint(**{**last.__dict__, **changes}).signed(live_key(log)))
            history.append(leaf_hash(rows[-1]))
        for folder in (log, next(witness.iterdir())):
            (folder / CHECKPOINTS).write_bytes(b"".join(row + b"\n" for row in rows))
        durable.leave()

        assert verify_log(log, [witness]).verdict == Verdict.VALID  # nobody could know
        for witnesses in ([witness, other], [other, witness]):
            report = verify_log(log, witnesses)
            assert report.verdict == Verdict.TAMPERED
            assert any(f"differs from the witness {other}" in finding for finding in report.findings)


class TestCutOffAndResumed:
    """CVE-2023-31438: after truncation, sealing went on and the verifier said that all was well."""

    @pytest.fixture
    def cut(self, copy):
        """Nothing newer than the checkpoints of the first writer is left."""
        log, witness = copy
        rows = (log / CHECKPOINTS).read_bytes().splitlines(keepends=True)
        first = Checkpoint.parse(rows[0][:-1]).writer
        kept = [row for row in rows if Checkpoint.parse(row[:-1]).writer == first]
        (log / CHECKPOINTS).write_bytes(b"".join(kept))
        for path in (log / "segments").iterdir():
            if not path.name.startswith(first):
                path.unlink()
        return log, witness, kept

    def test_the_service_does_not_go_on(self, cut):
        """Its key is ahead of the checkpoints that are left; so is its witness."""
        log, witness, _ = cut

        with pytest.raises(AuditUnavailable, match="holds checkpoints that the log does not"):
            DurableLog(log, [witness])
        with pytest.raises(AuditUnavailable, match="checkpoints are missing"):
            DurableLog(log)

    def test_going_on_by_hand_is_found(self, cut):
        """Even without a witness, where whole epochs were cut off."""
        log, _, kept = cut
        history = Tree()
        for line in kept:
            history.append(leaf_hash(line[:-1]))
        row = Checkpoint.parse(kept[-1][:-1]).__dict__ | {"number": len(kept), "writer": "f" * 24}
        live = live_key(log)
        row |= {"generation": live.generation, "epoch": live.epoch, "history": history.root.hex(), "next": None}
        with (log / CHECKPOINTS).open("ab") as stream:
            stream.write(Checkpoint(**row).signed(live) + b"\n")

        report = verify_log(log, public_key=public_key(log))

        assert any("cannot follow" in finding for finding in report.findings)

    def test_adding_to_a_closed_writer_is_found(self, copy):
        """The close is sealed too."""
        log, witness = copy
        segments = sorted((log / "segments").iterdir())
        writer = segments[0].name.split(".")[0]
        last = [path for path in segments if path.name.startswith(writer)][-1]
        line = last.read_bytes().splitlines()[-1]
        seq = Record.parse(line).seq + 1
        forged = encode_line(writer, seq, leaf_hash(line).hex(), encode_body("guard.outcome", {"decision_id": "x"}))
        with last.open("ab") as stream:
            stream.write(forged + b"\n")

        report = verify_log(log, [witness])

        assert report.verdict == Verdict.TAMPERED
        assert any("after the writer was closed" in finding for finding in report.findings)


def test_keys_that_the_live_key_announces_before_the_last_epoch_are_found(folders):
    """Whoever has taken it could else go on with keys of their own, for as long as they like."""
    log, _ = folders
    with DurableLog(log) as durable:
        call(durable, 1)
    lines = (log / CHECKPOINTS).read_bytes().splitlines()
    row = Checkpoint.parse(lines[-1]).__dict__ | {"next": "ab" * 32}
    lines[-1] = Checkpoint(**row).signed(live_key(log))
    (log / CHECKPOINTS).write_bytes(b"".join(line + b"\n" for line in lines))

    report = verify_log(log, public_key=public_key(log))

    assert report.verdict == Verdict.TAMPERED
    assert any("is of epoch 0.0, which cannot follow" in finding for finding in report.findings)


def test_a_log_signed_anew_under_keys_of_somebody_else_is_found(folders):
    """They stand where the log's own stood, and every signature fits them. They are not under the log's own root."""
    log, _ = folders
    with DurableLog(log, options=LogOptions()) as durable:
        call(durable, 1)
    mine = KeyState(0, 0, 0, bytes(32))
    (log / key_file(0)).write_bytes(b"".join(public_keys(mine.seed, EPOCHS)))
    history, lines = Tree(), []
    for line in (log / CHECKPOINTS).read_bytes().splitlines():
        lines.append(Checkpoint(**Checkpoint.parse(line).__dict__ | {"history": history.root.hex()}).signed(mine))
        history.append(leaf_hash(lines[-1]))
    (log / CHECKPOINTS).write_bytes(b"".join(line + b"\n" for line in lines))

    report = verify_log(log)

    assert report.verdict == Verdict.TAMPERED
    assert "the public keys of generation 0 are missing or changed" in report.findings


def test_a_signing_key_put_back_from_a_copy_is_refused(folders):
    """It could sign other checkpoints for epochs that are over."""
    log, witness = folders
    make_log(log, witness, calls=2, writers=1)
    old = (log / "keys" / "seal.key").read_bytes()
    make_log(log, witness, calls=8, writers=1)
    (log / "keys" / "seal.key").write_bytes(old)

    with pytest.raises(AuditUnavailable, match="put back from a copy"):
        DurableLog(log, [witness])


def test_no_old_seed_is_left_on_disk(folders):
    """Only the present one; what it derives from is nowhere in the folder of keys."""
    log, witness = folders
    seeds = []
    for _ in range(4):
        make_log(log, witness, calls=1, writers=1)
        seeds.append(live_key(log).seed.hex().encode())

    content = b"".join(path.read_bytes() for path in (log / "keys").iterdir())

    assert len(set(seeds)) == 4
    assert [seed in content for seed in seeds] == [False, False, False, True]


READERS = {"record": Record.parse, "checkpoint": Checkpoint.parse, "identity": Identity.parse}
many = settings(max_examples=20_000 if TORTURE else 200)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
@many
@given(st.binary(max_size=300))
def test_readers_answer_any_bytes_with_a_value_error(reader, content):
    """Never with another error."""
    with pytest.raises(ValueError, match=r"."):
        reader(content)


@many
@given(data=st.data())
def test_readers_answer_changed_lines_with_a_value_error_or_a_value(whole, data):
    """What they accept, they accept in one spelling only, or its hash gives it away."""
    log = whole / "log"
    lines = {
        "checkpoint": (log / CHECKPOINTS).read_bytes().splitlines(),
        "record": sorted((log / "segments").iterdir())[0].read_bytes().splitlines(),
        "identity": [(log / "log.json").read_bytes()],
    }
    kind = data.draw(st.sampled_from(sorted(lines)))
    line = bytearray(data.draw(st.sampled_from(lines[kind])))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(line) - 1))
        match data.draw(st.sampled_from(["change", "remove", "insert"])):
            case "change":
                line[at] = data.draw(st.integers(0, 255))
            case "remove":
                del line[at]
            case "insert":
                line[at:at] = data.draw(st.sampled_from([b"[" * 9, b"{", b'"', b"0", b"\n", b"\xff", b"e999", b"NaN"]))

    with contextlib.suppress(ValueError):
        READERS[kind](bytes(line))


@pytest.mark.parametrize("other", [lambda c: c[:-1], lambda c: c + b" ", lambda c: c.replace(b": ", b":", 1)])
def test_the_identity_of_a_log_has_one_spelling(whole, tmp_path, other):
    """A change that says the same is a change."""
    shutil.copytree(whole / "log", tmp_path / "log")
    path = tmp_path / "log" / "log.json"
    path.write_bytes(other(path.read_bytes()))

    assert verify_log(tmp_path / "log", [whole / "witness"]).verdict == Verdict.TAMPERED


def test_the_identity_of_a_log_says_how_many_keys_a_generation_has(whole):
    """A number that a file of keys may have; what else stands there is named, and no key is looked for."""

    def written(epochs):
        fields = json.loads((whole / "log" / "log.json").read_bytes())
        return json.dumps(fields | {"epochs": epochs}, sort_keys=True).encode() + b"\n"

    assert [Identity.parse(written(epochs)).epochs for epochs in (1, 1 << 20)] == [1, 1 << 20]
    for epochs in (0, -1, (1 << 20) + 1, True, 4.0, "4", None):
        with pytest.raises(ValueError, match="no number of keys"):
            Identity.parse(written(epochs))


@settings(max_examples=5000 if TORTURE else 40)
@given(data=st.data())
def test_verify_answers_any_bytes_in_any_file_with_a_verdict(whole, tmp_path_factory, data):
    """Also where a whole file was replaced by something else."""
    folder = tmp_path_factory.mktemp("any")
    shutil.copytree(whole / "log", folder / "log")
    files = sorted(path for path in (folder / "log").rglob("*") if path.is_file() and "keys/" not in str(path))
    path = data.draw(st.sampled_from(files))
    before = path.read_bytes()
    path.write_bytes(data.draw(st.binary(max_size=200)) + before[: data.draw(st.integers(0, len(before)))])

    report = verify_log(folder / "log", [whole / "witness"])

    unchanged = path.read_bytes() == before or path.name == ".lock"
    assert report.verdict == (Verdict.VALID if unchanged else Verdict.TAMPERED), (path, report)
    shutil.rmtree(folder)


def test_a_log_in_the_place_of_another_is_noted(copy):
    """The witness knows both, so it is the public key that tells them apart; it also says of which it keeps nothing."""
    log, witness = copy
    key, other, empty = public_key(log), log.with_name("other"), witness.with_name("empty")
    DurableLog(other, [witness]).close()
    shutil.copytree(witness, empty)
    for kept in empty.glob(f"*/{CHECKPOINTS}"):
        kept.write_bytes(b"")

    assert verify_log(other, [witness], public_key=key).verdict == Verdict.TAMPERED
    assert any("keep 1 other logs" in note for note in verify_log(other, [witness]).notes)
    assert verify_log(log, [witness], public_key=key).notes == []
    report = verify_log(log, [witness, empty], public_key=key)
    assert (report.verdict, len(report.notes)) == (Verdict.VALID, 1)
    assert "holds no checkpoints" in report.notes[0]
    (note,) = verify_log(log, [witness / Identity.parse((log / "log.json").read_bytes()).log]).notes
    assert f"did you mean {witness}?" in note
