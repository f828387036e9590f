"""`import apl_guard` is light, and gives exactly the public names."""

import inspect
import re
import subprocess
import sys

import pytest

import apl_guard
from apl_guard import errors


@pytest.mark.smoke
@pytest.mark.parametrize("module", ["apl_guard", "apl_guard.cli", "apl_guard.prefix", "apl_guard.policy"])
def test_the_import_loads_no_heavy_library(module):
    """In a fresh process, where nothing is loaded yet."""
    heavy = {"torch", "diffusers", "transformers"}
    code = f"import sys, {module}; print(*({heavy} & sys.modules.keys()))"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.split() == []


def test_every_public_name_can_be_imported():
    """The list is sorted, and each name is where it says."""
    assert apl_guard.__all__ == sorted(apl_guard.__all__)
    for name in apl_guard.__all__:
        assert getattr(apl_guard, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = apl_guard.nothing


def test_what_a_guard_takes_is_public():
    """Every type of this package that an argument may have stands beside `Guard`."""
    taken = {
        name
        for parameter in inspect.signature(apl_guard.Guard).parameters.values()
        for name in re.findall(r"[A-Z]\w+", str(parameter.annotation))
    }

    assert taken - set(apl_guard.__all__) == {"Any", "CollectorRegistry", "Iterable", "None", "Path"}


def test_what_a_guard_hands_out_is_public():
    """So a program can name the types of what it gets, and of the parts of that."""
    handed = [apl_guard.Guard, apl_guard.Guarded]
    methods = [m for name, m in inspect.getmembers(apl_guard.Guard, inspect.isfunction) if not name.startswith("_")]
    said = [inspect.signature(each).return_annotation for each in methods]
    said += [kind for each in handed for kind in inspect.get_annotations(each).values()]
    given = {name for each in said for name in re.findall(r"\b[A-Z]\w+", str(each))}

    assert {"SelfTest", "Outcome"} < given
    assert given - set(apl_guard.__all__) <= {"AbstractContextManager", "Any", "None", "Parts"}


def test_every_error_is_public_and_drawn_in_the_tree():
    """A new error must be added to both."""
    for name in errors.__all__:
        assert name in apl_guard.__all__
        assert name in errors.__doc__
        assert issubclass(getattr(errors, name), errors.AplGuardError)
