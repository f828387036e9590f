"""Coverage-guided fuzzing of the reader of policies, with atheris. On demand, beside `make fuzz`.

Each input is a file. What the reader accepts must, printed as JSON, be read again as a policy of the same digest; every
other input must end in `PolicyInvalid` with a message that a terminal can show.

    python tests/fuzz/fuzz_policy.py -max_total_time=60 build/fuzz/policy
"""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("atheris") is None:
    print("skipped: atheris is not installed; it has wheels for Linux: pip install atheris", file=sys.stderr)
    sys.exit(0)

import atheris

with atheris.instrument_imports(include=["apl_guard", "yaml"]):
    from apl_guard import Policy, PolicyInvalid


def read(content: bytes) -> None:
    """Read one file."""
    try:
        policy = Policy.parse(content, where="fuzz")
    except PolicyInvalid as error:
        if not str(error).isprintable():
            raise AssertionError("a message that a terminal would obey") from error
        return
    again = Policy.parse(policy.model_dump_json(exclude_none=True).encode(), where="fuzz")
    if again.digest != policy.digest:
        raise AssertionError("another policy after printing")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if not argument.startswith("-"):
            Path(argument).mkdir(parents=True, exist_ok=True)
            for seed in Path(__file__).parents[2].joinpath("policies").glob("*.yaml"):
                Path(argument, seed.name).write_bytes(seed.read_bytes())
    atheris.Setup([*sys.argv, "-max_len=4096", "-rss_limit_mb=512", "-timeout=5"], read)
    atheris.Fuzz()
