"""An adapter in somebody else's package: the one of `docs/adapters.md`, built, installed and tested by itself."""

import inspect
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from xmlrpc.client import ServerProxy

import pytest

import apl_guard
from apl_guard import Guard, InvalidInput, backend
from apl_guard.testing import random_prefix, tiny_pipe
from apl_guard.testing.conformance import AdapterConformance

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "docs" / "adapters.md").exists(), reason="needs the sources")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which the package of the document is installed, and the folder with its test."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    blocks = re.findall(r"```\w+\n# (\S+)\n(.*?)```", (ROOT / "docs" / "adapters.md").read_text(), re.DOTALL)
    assert [name for name, _ in blocks] == ["pyproject.toml", "sketchlib.py", "sketch_guard.py", "test_sketch_guard.py"]
    for name, text in blocks:
        (source / name).write_text(text)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--target", target, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"sketchlib.py", "sketch_guard.py"} <= {path.name for path in target.iterdir()}
    return target, source


def python(target, *arguments):
    home = Path(apl_guard.__file__).parents[1]
    paths = os.pathsep.join([str(target), str(home)])
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )


def test_the_guard_finds_it_by_its_entry_point(installed):
    """In a fresh process that has imported neither."""
    code = """
from sketchlib import Pencil
from apl_guard import Guard
from apl_guard.testing import random_prefix, tiny_pipe
guard = Guard(Pencil(), prefix=random_prefix(tiny_pipe()))
print(guard, guard("a man", width=4)["picture"])
"""
    found = python(installed[0], "-c", code)

    assert re.fullmatch(r"Guard\('sketchlib:Pencil', policy='anonymize_faces'\) a man 4 [1-9]\d*\n", found.stdout), (
        found.stderr
    )


def test_its_own_suite_passes(installed):
    """Every test of the conformance suite, none left out."""
    target, source = installed
    test = source / "test_sketch_guard.py"
    found = python(target, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", source, test)

    assert found.returncode == 0, found.stdout[-3000:]
    assert re.search(r"\d\d passed, 1 skipped", found.stdout), found.stdout[-500:]


LEAKS = {
    "forgets the prefix": ("vectors=prefix.vectors[slot])", "vectors=None)"),
    "lets unknown arguments in": ("frozenset(used), unknown,", "frozenset(used), (),"),
    "draws the prompt that was asked": ("(prompt,) = request.prompts", 'prompt = "a photo of Mara Voss"'),
    "has no receipt": ("Receipt({slot: (prefix.n,)})", "Receipt()"),
    "returns another type": ("return Generation(output, 1,", "return Generation([output], 1,"),
    "gives the pipe away": (
        "raise AttributeError(f\"'{name}' is not",
        "return self._pencil or dict(a=f\"'{name}' is not",
    ),
    "keeps the caller's text": ('texts(arguments.pop("prompt"), where="prompt")', '(arguments.pop("prompt"),)'),
    "says that no prefix can reach": ("carries_prefix = True", "carries_prefix = False"),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_the_suite_finds_an_adapter_that_leaks(installed, monkeypatch, tmp_path, leak):
    """Each way of being wrong fails a test; the adapter as it is fails none, says the test above."""
    target, source = installed
    monkeypatch.syspath_prepend(str(target))
    right, wrong = LEAKS[leak]
    text = (source / "sketch_guard.py").read_text()
    assert right in text

    assert first_failure(text.replace(right, wrong), source, monkeypatch, tmp_path) is not None


def test_an_adapter_may_be_given_itself_where_no_package_names_it(installed, monkeypatch):
    """As in a notebook. What answers to any name, as clients of remote calls do, is none."""
    _, source = installed
    made: dict = {}
    for file in ("sketchlib.py", "sketch_guard.py"):
        exec(compile((source / file).read_text(), file, "exec"), made)
    monkeypatch.setattr(backend, "entry_points", lambda group: [])

    with Guard(made["SketchAdapter"](made["Pencil"]()), prefix=random_prefix(tiny_pipe())) as guard:
        result = guard.generate("a man", width=4)
    assert re.fullmatch(r"a man 4 [1-9]\d*", result.output["picture"])
    assert result.outcome.prefix_rows == {"text_encoder": (10,)}
    for other in (made["Pencil"](), made["SketchAdapter"], ServerProxy("http://127.0.0.1:9")):
        with pytest.raises(InvalidInput, match="no adapter for"):
            Guard(other, prefix=random_prefix(tiny_pipe()))


def first_failure(adapter, source, monkeypatch, folder):
    """The first test of the suite that an adapter fails, given as its source."""
    module = types.ModuleType("sketch_guard")
    exec(compile(adapter, "sketch_guard.py", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "sketch_guard", module)
    suite: dict = {}
    exec(compile((source / "test_sketch_guard.py").read_text(), "test_sketch_guard.py", "exec"), suite)
    for name in (name for name in dir(AdapterConformance) if name.startswith("test_")):
        test = getattr(suite["TestSketchAdapter"](), name)
        case = suite["TestSketchAdapter"].case.__wrapped__(None)
        draws = []
        case.watch(lambda draws=draws: draws.append(None))
        given = {"case": case, "draws": draws, "passing": "anonymize_faces", "tmp_path": folder / name}
        try:
            test(**{key: given[key] for key in inspect.signature(test).parameters})
        except pytest.skip.Exception:
            pass
        except (Exception, pytest.fail.Exception):
            return name
    return None
