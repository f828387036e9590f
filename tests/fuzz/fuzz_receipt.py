"""Coverage-guided fuzzing of the reader of receipts, with atheris. On demand: `make fuzz`.

Each input is what somebody claims to be a receipt of a log whose public key is known. The reader refuses it with
`InvalidInput`, in words that a terminal can show, or it proves records of that log: whatever is accepted stands in the
log, word for word. Anything else is a finding.

    python tests/fuzz/fuzz_receipt.py -max_total_time=60 CORPUS
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

if importlib.util.find_spec("atheris") is None:
    print("skipped: atheris is not installed; it has wheels for Linux: pip install atheris", file=sys.stderr)
    sys.exit(0)

import atheris

with atheris.instrument_imports(include=["apl_guard", "json"]):
    from apl_guard.audit.durable import DurableLog, LogOptions
    from apl_guard.audit.reading import read_log
    from apl_guard.audit.receipt import check_receipt, prove
    from apl_guard.errors import InvalidInput

DECISIONS = 6


def make_log(folder: Path) -> tuple[str, dict[str, bytes], set[str]]:
    """A log over several keys: its public key, a receipt for each decision, and all of its lines."""
    # Keys that change with each checkpoint, three to a generation, so that receipts hold every part that they can.
    with DurableLog(folder, options=LogOptions(epochs=3, epoch_seconds=0)) as log:
        for number in range(DECISIONS):
            fields = {"decision_id": f"d{number}"}
            log.append("guard.decision", fields, decision=f"d{number}", opens=True)
            log.append("guard.outcome", fields, decision=f"d{number}", closes=True)
            log.seal()
        key = log.identity.root
    receipts = {f"d{n}": json.dumps(prove(folder, f"d{n}")).encode() for n in range(DECISIONS)}
    return key, receipts, {found.line.content.decode() for found in read_log(folder)}


with tempfile.TemporaryDirectory() as place:
    KEY, RECEIPTS, LINES = make_log(Path(place, "log"))


def read(content: bytes) -> None:
    """Check one input: as it is, as a change to a receipt that holds, and as a choice of parts of several."""
    for claim in (content, changed(content), mixed(content)):
        try:
            records = check_receipt(claim, KEY)
        except InvalidInput as error:
            if not str(error).isprintable():
                raise AssertionError("a message that a terminal would obey") from error
            continue
        proved = {json.dumps([r.writer, r.seq, r.prev, dict(r.fields)], sort_keys=True) for r in records}
        if not proved <= KNOWN:
            raise AssertionError("proves what is not in the log")


def changed(content: bytes) -> bytes:
    """A receipt with some of its bytes replaced: which one, where, and by what, say the first bytes of the input."""
    receipt = bytearray(RECEIPTS[f"d{(content[:1] or b'0')[0] % DECISIONS}"])
    for at in range(1, len(content) - 2, 3):
        receipt[int.from_bytes(content[at : at + 2]) % len(receipt)] = content[at + 2]
    return bytes(receipt)


def mixed(content: bytes) -> bytes:
    """A receipt whose parts come from several, each whole: which one gives which part say the bytes of the input."""
    receipts = [json.loads(receipt) for receipt in RECEIPTS.values()]
    choices = iter(content + bytes(64))
    made = {name: receipts[next(choices) % DECISIONS][name] for name in receipts[0]}
    for name in ("records", "checkpoints", "generations"):
        for number in range(len(made[name])):
            given = receipts[next(choices) % DECISIONS][name]
            if given and next(choices) % 2:
                made[name][number] = {
                    part: given[next(choices) % len(given)][part] if next(choices) % 4 == 0 else own
                    for part, own in made[name][number].items()
                }
    return json.dumps(made).encode()


def known(line: str) -> str:
    fields = json.loads(line)
    return json.dumps([fields.pop("writer"), fields.pop("seq"), fields.pop("prev"), fields], sort_keys=True)


KNOWN = set(map(known, LINES))

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if not argument.startswith("-"):
            Path(argument).mkdir(parents=True, exist_ok=True)
            for name, seed in RECEIPTS.items():
                Path(argument, name).write_bytes(seed)
    atheris.Setup([*sys.argv, "-max_len=16384", "-rss_limit_mb=512", "-timeout=5"], read)
    atheris.Fuzz()
