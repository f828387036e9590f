"""diffusers' own fast pipeline tests, plain and through a guard in mode `unsafe_off`, side by side.

    python tests/benchmarks/diffusers_suites.py CHECKOUT [--suites stable_diffusion flux] [--output results.md]

CHECKOUT is a folder with a checkout of https://github.com/huggingface/diffusers at the installed version, or near it.
Nothing is downloaded: the tests' tiny tokenizers and text encoders are replaced by ones made here, in a cache of the
hub of our own, and what else a test wants from the hub fails, with the guard as without it. The tests need two more
packages: pip install parameterized requests-mock

A test that compares pixels with figures from the original tokenizers fails in both arms. What counts is the last
column: nothing may differ.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

SUITES = {
    "stable_diffusion": "tests/pipelines/stable_diffusion/test_stable_diffusion.py",
    "stable_diffusion_xl": "tests/pipelines/stable_diffusion_xl/test_stable_diffusion_xl.py",
    "stable_diffusion_3": "tests/pipelines/stable_diffusion_3/test_pipeline_stable_diffusion_3.py",
    "flux": "tests/pipelines/flux/test_pipeline_flux.py",
}
_RESULT = {"failure": "failed", "error": "failed"}
HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> int:
    """Run and print. Exits with 1 where a result differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of a diffusers checkout")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--output", type=Path, help="where to write the whole list, as Markdown")
    options = parser.parse_args()
    missing = [path for name in options.suites if not (options.checkout / (path := SUITES[name])).is_file()]
    if missing:
        parser.error(f"{options.checkout} has no {missing[0]}; expected a checkout of diffusers")
    lines, differ = [], 0
    with tempfile.TemporaryDirectory() as folder:
        _write_hub(Path(folder))
        for suite in options.suites:
            began = time.monotonic()
            plain, _ = _run(suite, options.checkout, Path(folder), guarded=False)
            guarded, calls = _run(suite, options.checkout, Path(folder), guarded=True)
            if not calls:
                raise SystemExit(f"{suite}: no call went through a guard, so this says nothing")
            differing = [test for test in plain.keys() | guarded.keys() if plain.get(test) != guarded.get(test)]
            differ += len(differing)
            sums = " | ".join(_summary(found) for found in (plain, guarded))
            seconds = time.monotonic() - began
            print(f"| {suite} | {sums} | {calls} | {len(differing)} |  {seconds:.0f} s", flush=True)
            for test in sorted(plain.keys() | guarded.keys()):
                mark = "**differs**" if test in differing else ""
                lines.append(f"| {suite} | {test} | {plain.get(test)} | {guarded.get(test)} | {mark} |")
    if options.output:
        head = "| suite | test | plain | guarded | |\n| --- | --- | --- | --- | --- |\n"
        options.output.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return int(differ > 0)


def _write_hub(folder: Path) -> None:
    """A cache of the hub with stand-ins for the tiny models that the tests name."""
    from apl_guard.testing import text

    encoder, t5_tokenizer = text.t5()
    for name, parts in (("tiny-random-clip", [text.tiny_tokenizer()]), ("tiny-random-t5", [t5_tokenizer, encoder])):
        repository = folder / "hub" / f"models--hf-internal-testing--{name}"
        snapshot = repository / "snapshots" / ("0" * 40)
        for part in parts:
            part.save_pretrained(snapshot)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)


def _run(suite: str, checkout: Path, folder: Path, *, guarded: bool) -> tuple[dict[str, str], int]:
    """Test → result, and how many calls went through a guard."""
    report, calls = folder / "report.xml", folder / "calls"
    calls.write_text("0")
    plugin = ["-p", "guarded_suites"] if guarded else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, f"--junitxml={report}"]
    own = {
        "APL_GUARD_CALLS": str(calls),
        "HF_HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "DIFFUSERS_TEST_DEVICE": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [*command, SUITES[suite]], cwd=checkout, env=os.environ | own, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{suite} could not be run:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        class_name = case.get("classname", "").rpartition(".")[2]
        result = kinds[0] if kinds else "passed"
        found[f"{class_name}::{case.get('name')}"] = _RESULT.get(result, result)
    report.unlink()
    return found, int(calls.read_text())


def _summary(found: dict[str, str]) -> str:
    counts = {kind: list(found.values()).count(kind) for kind in ("passed", "failed", "skipped")}
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


if __name__ == "__main__":
    sys.exit(main())
