"""Coverage-guided fuzzing of the readers of the audit log, with atheris. On demand: `make fuzz`.

Each input is a line: a record, a checkpoint or the identity. A reader answers with what the line
says or with `ValueError`; a checkpoint that is accepted has one spelling only. Anything else is a finding.

    python tests/fuzz/fuzz_audit.py -max_total_time=60 CORPUS
"""

import contextlib
import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("atheris") is None:
    print("skipped: atheris is not installed; it has wheels for Linux: pip install atheris", file=sys.stderr)
    sys.exit(0)

import atheris

with atheris.instrument_imports(include=["apl_guard", "json"]):
    from apl_guard.audit.checkpoint import Checkpoint, Identity
    from apl_guard.audit.record import NO_PREVIOUS, Record, encode_body, encode_line
    from apl_guard.audit.seal_key import KeyState

KEY = KeyState(0, 0, 0, bytes(32))
CHECKPOINT = Checkpoint(3, "ab" * 16, "cd" * 12, 7, "ef" * 32, False, 0, 0, "01" * 32, "2026-01-01T00:00:00.000000Z")
SEEDS = {
    "record": encode_line("cd" * 12, 0, NO_PREVIOUS, encode_body("guard.outcome", {"decision_id": "1", "images": 1})),
    "checkpoint": CHECKPOINT.signed(KEY),
    "identity": Identity("ab" * 16, "ef" * 32, 1024).to_json(),
}


def read(content: bytes) -> None:
    for parse in (Record.parse, Identity.parse):
        with contextlib.suppress(ValueError):
            parse(content)
    try:
        checkpoint = Checkpoint.parse(content)
    except ValueError:
        return
    assert checkpoint.signed(KEY).rpartition(b',"signature":')[0] == content.rpartition(b',"signature":')[0]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if not argument.startswith("-"):
            Path(argument).mkdir(parents=True, exist_ok=True)
            for name, seed in SEEDS.items():
                Path(argument, name).write_bytes(seed)
    atheris.Setup([*sys.argv, "-max_len=4096", "-rss_limit_mb=512", "-timeout=5"], read)
    atheris.Fuzz()
