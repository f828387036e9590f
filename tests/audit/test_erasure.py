"""Text of prompts: off by default, and where it is on, erasable without a trace in the proof."""

import base64
import itertools
import json

import instant
import pytest
from logs import records

from apl_guard import AuditUnavailable, Guard, InvalidInput
from apl_guard.audit import AuditLog
from apl_guard.audit.erase import erase, reveal
from apl_guard.audit.rotate import rotate
from apl_guard.audit.verify import Verdict, verify_log

CANARY = "Mara Voss in a red shirt"


def everything(folder):
    """Every byte under a folder, and every decoded ciphertext."""
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def decisions(log):
    lines = b"".join(path.read_bytes() for path in sorted((log / "segments").iterdir())).splitlines()
    return [r for r in map(json.loads, lines) if r["event"] == "guard.decision"]


@pytest.fixture
def log(folders, prefix):
    """Two subjects and somebody without a name have asked."""
    log, witness = folders
    with AuditLog(log, witness=witness, capture="encrypted") as audit:
        guard = Guard(instant.Pipe(), prefix=prefix, audit=audit)
        for subject in ("account-7", "account-8"):
            with guard.context(subject=subject):
                guard(CANARY)
                guard([CANARY, subject])
        guard(CANARY)
    return log, witness


def test_no_text_without_opting_in(folders, prefix):
    """Not even of the subject's name; equal prompts have equal digests, and so have spellings that look alike."""
    log, witness = folders
    with AuditLog(log, witness=witness) as audit:
        guard = Guard(instant.Pipe(), prefix=prefix, audit=audit)
        with guard.context(subject="account-7"):
            guard(CANARY)
            guard(CANARY.replace("Mara", "Mаra").upper())  # with one Cyrillic letter
    content = everything(log) + everything(witness)
    assert b"Mara" not in content
    assert b"account-7" not in content
    first, second = (r["text"]["prompt"][0] for r in decisions(log))
    assert first["hmac"] != second["hmac"]
    assert first["norm_hmac"] == second["norm_hmac"]
    assert len({r["subject"] for r in decisions(log)}) == 1


def test_a_list_of_names_is_of_no_use_against_the_digests(folders, prefix):
    """Whoever has the log and not its key can try a dictionary, with and without a key, in vain."""
    import hashlib
    import hmac

    log, witness = folders
    with AuditLog(log, witness=witness) as audit:
        Guard(instant.Pipe(), prefix=prefix, audit=audit)("Mara Voss")
    (found,) = decisions(log)
    digests = {value for value in found["text"]["prompt"][0].values() if isinstance(value, str)}
    names = ["Mara Voss", *(f"{a} {b}" for a, b in itertools.product(["Mara", "Anna"], ["Voss", "West"]))]
    public = [b"", bytes(32), found["key_id"].encode(), bytes.fromhex(found["policy"]["digest"])]
    tried = {hashlib.sha256(name.lower().encode()).hexdigest() for name in names}
    tried |= {hmac.digest(key, name.encode(), "sha256").hex() for name in names for key in public}

    assert not digests & tried


def test_text_is_encrypted_and_can_be_read_until_it_is_erased(log):
    """Reading and erasing are on record; the log verifies before and after; other subjects keep theirs."""
    log, witness = log
    assert CANARY.encode() not in everything(log)
    of = {(r["subject"], len(r["text"]["prompt"])): r["decision_id"] for r in decisions(log)}
    assert len(of) == 5
    ids = [r["decision_id"] for r in decisions(log)]
    assert reveal(log, ids[1], witnesses=[witness]) == {"prompt": [CANARY, "account-7"]}

    erase(log, subject="account-7", witnesses=[witness])

    assert reveal(log, ids[0], witnesses=[witness]) is None
    assert reveal(log, ids[1], witnesses=[witness]) is None
    assert reveal(log, ids[2], witnesses=[witness]) == {"prompt": [CANARY]}
    assert reveal(log, ids[4], witnesses=[witness]) == {"prompt": [CANARY]}
    report = verify_log(log, [witness])
    assert (report.verdict, report.records) == (Verdict.VALID, report.witnessed)
    content = everything(log).decode("latin-1")
    assert content.count('"event":"audit.erasure"') == 1
    assert content.count('"event":"audit.access"') == 5
    with pytest.raises(InvalidInput, match=r"nothing is erased.*not kept as text.*already"):
        erase(log, subject="account-7", witnesses=[witness])


def test_a_key_that_comes_back_from_a_backup_opens_nothing(log, run):
    """The log says that it was destroyed, so nobody is shown the text; it can be destroyed again."""
    log, witness = log
    kept = {path: path.read_bytes() for path in (log / "keys" / "subjects").iterdir()}
    ids = [r["decision_id"] for r in decisions(log)]
    erase(log, subject="account-7", witnesses=[witness])
    for path, content in kept.items():
        path.write_bytes(content)
        path.chmod(0o600)

    for _ in range(2):
        code, out, errors = run("reveal", log, ids[0], "--witness", witness)
        assert (code, out, "was erased at 2" in errors) == (2, "", True)
    assert reveal(log, ids[2], witnesses=[witness]) == {"prompt": [CANARY]}
    erase(log, decision_id=ids[0], witnesses=[witness])
    assert reveal(log, ids[0], witnesses=[witness]) is None


def test_a_key_that_cannot_be_read_is_destroyed_and_that_is_recorded(log):
    """Put back with other rights, or damaged: what can be read of it must go, and nobody is told that it was none."""
    log, witness = log
    first, second, *_ = sorted((log / "keys" / "subjects").iterdir())
    first.chmod(0o644)
    second.write_bytes(b"{" + second.read_bytes())
    ids = {r["subject"]: r["decision_id"] for r in decisions(log)}

    for path in (first, second):
        assert erase(log, decision_id=ids[path.stem], witnesses=[witness]) == ["unknown"]
        assert not path.exists()

    recorded = [r["subject"] for r in records(log) if r["event"] == "audit.erasure"]
    assert recorded == [first.stem, second.stem]


def test_all_prompts_of_a_subject_are_shown_at_once(log, run):
    """For who asks what is kept of them, under every digest key; nobody else's, and each look is on record."""
    log, witness = log
    mine = [r["decision_id"] for r in decisions(log)][:2]
    rotate(log, witnesses=[witness])

    code, out, _ = run("reveal", log, "--subject", "account-7", "--witness", witness)

    shown = [json.loads(line) for line in out.splitlines()]
    assert (code, [each["decision_id"] for each in shown]) == (0, mine)
    assert [each["text"] for each in shown] == [{"prompt": [CANARY]}, {"prompt": [CANARY, "account-7"]}]
    assert [r["decision_id"] for r in records(log) if r["event"] == "audit.access"] == mine
    assert run("reveal", log, "--subject", "nobody")[1] == "not recorded, or erased\n"
    for wrong in ([], [mine[0], "--subject", "account-7"]):
        assert run("reveal", log, *wrong)[0] == 2
    erase(log, subject="account-7", witnesses=[witness])
    assert run("reveal", log, "--subject", "account-7")[1] == "not recorded, or erased\n"
    assert verify_log(log, [witness]).verdict == Verdict.VALID


def test_erasure_by_decision(log):
    """For who has a receipt and no account. Where the call named a subject, all texts of that go, as the page says."""
    log, witness = log
    ids = [r["decision_id"] for r in decisions(log)]

    erase(log, decision_id=ids[4], witnesses=[witness])

    assert reveal(log, ids[4], witnesses=[witness]) is None
    assert reveal(log, ids[3], witnesses=[witness]) == {"prompt": [CANARY, "account-8"]}
    erase(log, decision_id=ids[2], witnesses=[witness])
    assert [reveal(log, id, witnesses=[witness]) is None for id in ids] == [False, False, True, True, True]
    with pytest.raises(InvalidInput, match="no decision"):
        erase(log, decision_id="nothing")


def test_nothing_of_a_destroyed_key_is_left(log):
    """Nor does a subject that comes back open the old records."""
    log, witness = log
    keys = {path.name: json.loads(path.read_bytes()) for path in (log / "keys" / "subjects").iterdir()}
    before = everything(log / "keys")
    erase(log, subject="account-7", witnesses=[witness])
    after = everything(log / "keys")
    gone = [key for key in keys.values() if key["key"].encode() not in after]

    assert all(key["key"].encode() in before for key in keys.values())
    assert len(gone) == 1
    with AuditLog(log, witness=witness, capture="encrypted") as audit:
        guard = Guard(instant.Pipe(), audit=audit, policy="unsafe_allow_all")
        with guard.context(subject="account-7"):
            guard("a cat")
    found = decisions(log)
    assert reveal(log, found[0]["decision_id"], witnesses=[witness]) is None
    assert reveal(log, found[5]["decision_id"], witnesses=[witness]) == {"prompt": ["a cat"]}


def test_a_changed_text_is_not_read_as_another(log):
    """It is bound to its decision and its key."""
    log, witness = log
    segment = sorted((log / "segments").iterdir())[0]
    found = decisions(log)[0]
    changed = bytearray(base64.b64decode(found["enc"]["ct"]))
    changed[3] ^= 1
    other = base64.b64encode(changed).decode()
    segment.write_bytes(segment.read_bytes().replace(found["enc"]["ct"].encode(), other.encode()))

    assert verify_log(log, [witness]).verdict == Verdict.TAMPERED
    from apl_guard.audit.subjects import SubjectKeys

    keys = SubjectKeys(log / "keys", (log / "keys" / "digest.key").read_bytes())
    with pytest.raises(AuditUnavailable, match="does not fit"):
        keys.decrypt(found["decision_id"], {"subject": found["subject"], "enc": found["enc"] | {"ct": other}})
    with pytest.raises(AuditUnavailable, match="does not fit"):
        keys.decrypt("another", found)


def test_a_key_that_cannot_be_made_means_no_image(log, prefix):
    """As every record that cannot be written."""
    log, witness = log
    with AuditLog(log, witness=witness, capture="encrypted") as audit:
        pipe = instant.Pipe()
        guard = Guard(pipe, prefix=prefix, audit=audit)
        (log / "keys" / "subjects").rename(log / "keys" / "away")
        (log / "keys" / "subjects").write_text("in the way")
        with guard.context(subject="new"), pytest.raises(AuditUnavailable, match="no image"):
            guard(CANARY)
    assert pipe.calls == 0


def test_text_needs_a_folder():
    """The platform's logging gets none."""
    with pytest.raises(InvalidInput, match="folder"):
        AuditLog(capture="encrypted")
    with pytest.raises(InvalidInput, match="digests"):
        AuditLog(capture="everything")


@pytest.mark.parametrize("name", ["a/../digest".rjust(64, "a"), "../" * 20 + "keys", "*" * 64, "", "a" * 63])
def test_a_subject_that_a_changed_record_names_leads_to_no_other_file(tmp_path, name):
    """Where a record says whose it is, it chooses no path at which something is destroyed."""
    from apl_guard.audit.subjects import SubjectKeys

    with pytest.raises(AuditUnavailable, match="no name of a subject"):
        SubjectKeys(tmp_path, bytes(32)).destroy(name)
