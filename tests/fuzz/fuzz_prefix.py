"""Coverage-guided fuzzing of the reader of prefix files, with atheris. On demand: `make fuzz`.

Each input is a file. What the reader accepts must be written again as a file of the same digest and values;
every other input must end in `PrefixInvalid`. Anything else is a finding, which atheris reports and keeps.

    python tests/fuzz/fuzz_prefix.py -max_total_time=60 CORPUS
"""

import importlib.util
import sys
from datetime import UTC, datetime
from pathlib import Path

if importlib.util.find_spec("atheris") is None:
    print("skipped: atheris is not installed; it has wheels for Linux: pip install atheris", file=sys.stderr)
    sys.exit(0)

import atheris

with atheris.instrument_imports(include=["apl_guard", "json"]):
    from apl_guard import Fingerprint, Prefix, PrefixInvalid, PrefixMetadata


def seed() -> bytes:
    """A good file, from which mutation starts."""
    of = Fingerprint(weights="ab" * 32, tokenizer="cd" * 32)
    metadata = PrefixMetadata(
        name="demo",
        n=1,
        widths={"text_encoder": 2},
        fingerprints={"text_encoder": of},
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return Prefix({"text_encoder": [[1.0, 2.0]]}, metadata).to_bytes()


def read(content: bytes) -> None:
    try:
        prefix = Prefix.parse(content, where="fuzz")
    except PrefixInvalid:
        return
    again = Prefix.parse(prefix.to_bytes(), where="again")
    assert again.digest == prefix.digest
    assert again.metadata == prefix.metadata


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if not argument.startswith("-"):
            Path(argument).mkdir(parents=True, exist_ok=True)
            Path(argument, "good").write_bytes(seed())
    atheris.Setup([*sys.argv, "-max_len=4096", "-rss_limit_mb=512", "-timeout=5"], read)
    atheris.Fuzz()
