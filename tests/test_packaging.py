"""The wheel holds every file of the package and nothing else, also when it is built from the source distribution."""

import ast
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FOLDERS = {"apl_guard": "apl_guard", "adapters": "apl_guard.adapters", "policies": "apl_guard.policies"}
FOLDERS["trainer"] = "apl_guard.trainer"

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the sources")


def sources():
    """Name in the wheel → file in the checkout. Links are skipped: what they point at comes under its own name."""
    found = {}
    for folder, package in FOLDERS.items():
        for file in (ROOT / folder).rglob("*"):
            relative = file.relative_to(ROOT / folder)
            if file.is_file() and "__pycache__" not in relative.parts:
                found[f"{package.replace('.', '/')}/{relative.as_posix()}"] = file
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source distribution and the wheel that is built from it, from a copy of the sources, so that nothing is left
    behind in the checkout."""
    copied = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copied)
    for folder in (*FOLDERS, "docs", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, copied / folder, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", "."]
    done = subprocess.run(command, cwd=copied, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return copied / "dist"


@pytest.fixture(scope="module")
def wheel(built):
    return zipfile.ZipFile(next(built.glob("*.whl")))


def test_a_source_distribution_holds_the_documents_and_no_tests(built):
    """Those that setuptools takes along by itself lack their helpers, and the links that they need."""
    with tarfile.open(next(built.glob("*.tar.gz"))) as distribution:
        inside = {name.partition("/")[2] for name in distribution.getnames()}

    assert {
        "docs/policies.md",
        "docs/images/bench.png",
        "CHANGELOG.md",
        "LICENSE",
        "adapters/inject/injection.py",
    } <= inside
    assert not [name for name in inside if name.startswith("tests")]


def test_the_wheel_holds_exactly_the_sources(wheel):
    """A sub-package forgotten in `pyproject.toml` would be missing without a word."""
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}

    assert inside == set(sources())


def test_only_our_own_name_is_on_top(wheel):
    """`adapters`, `policies` and `trainer` belong to other projects."""
    tops = {name.split("/")[0] for name in wheel.namelist()}

    assert {top for top in tops if not top.endswith(".dist-info")} == {"apl_guard"}


def test_every_package_is_listed():
    """Each folder with an `__init__.py` is in `pyproject.toml`, and nothing more."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {name.removesuffix("/__init__.py").replace("/", ".") for name in sources() if name.endswith("/__init__.py")}

    assert found == listed


@pytest.mark.parametrize("name", ["adapters", "policies", "trainer"])
def test_the_links_point_home(name):
    """Tools that read the checkout find the sub-packages through them."""
    assert (ROOT / "apl_guard" / name).resolve() == ROOT / name


@pytest.mark.parametrize("name", ["adapters", "trainer"])
def test_a_second_spelling_does_not_import(name):
    """From the root of the checkout `import adapters` would make a second copy of every class."""
    found = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)

    assert "attempted relative import beyond top-level package" in found.stderr


def test_every_package_that_is_imported_is_named():
    """In the dependencies or an extra. Many come along with others, until those no longer need them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [extra for name, extra in project["optional-dependencies"].items() if name not in ("dev", "fuzz")]
    promised = [*project["dependencies"], *(one for extra in extras for one in extra)]
    named = {canonical_name(Requirement(one).name) for one in promised} | {"tokenizers"}  # a part of transformers
    distributions = packages_distributions()
    missing = {
        f"{name}: {top}"
        for name, file in sources().items()
        if name.endswith(".py") and not name.startswith("apl_guard/testing/")  # for tests, whose own needs it states
        for top in imported(file) - set(sys.stdlib_module_names) - {"apl_guard"}
        if not named & {canonical_name(one) for one in distributions.get(top, [])}
    }

    assert missing == {"apl_guard/registry/source.py: aiohttp"}  # once fsspec has said that it is there


def imported(file):
    """The packages on top of all that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def canonical_name(distribution):
    return distribution.lower().replace("_", "-")


def test_the_oldest_versions_are_the_lower_bounds():
    """What `make oldest` runs with is what `pyproject.toml` promises."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for name in project["optional-dependencies"] if name not in ("dev", "fuzz", "ner", "signing")]
    promised = [*project["dependencies"], *(one for name in extras for one in project["optional-dependencies"][name])]
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()

    oldest = [Requirement(line) for line in lines if not line.startswith("#")]
    bounds = {one.name: next(iter(one.specifier)).version for one in map(Requirement, promised)}

    assert [one.name for one in oldest] == sorted(bounds)
    for one in oldest:
        pinned = next(iter(one.specifier)).version
        assert Version(pinned).release[: len(Version(bounds[one.name]).release)] == Version(bounds[one.name]).release
