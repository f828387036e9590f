"""An account without a home, as a container may have, is told which variables to set."""

import pwd

import pytest

from apl_guard import InvalidInput, PrefixRegistry
from apl_guard.policy.names_file import names_folder
from apl_guard.prefix.layout import cache_root
from apl_guard.prefix.places import registry_root

FOLDERS = {"APL_GUARD_REGISTRY": registry_root, "APL_GUARD_CACHE": cache_root, "APL_GUARD_NAMES": names_folder}


@pytest.fixture
def homeless(monkeypatch):
    """No variable names a folder, and the system does not know the account."""

    def nobody(uid):
        raise KeyError(uid)

    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", *FOLDERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)


@pytest.mark.parametrize("variable", FOLDERS)
def test_without_a_home_the_error_names_the_variable(homeless, variable, monkeypatch, tmp_path):
    """And no folder named ~ appears where the service was started; with the variable, there is no error."""
    with pytest.raises(InvalidInput, match=variable):
        FOLDERS[variable]()

    monkeypatch.setenv(variable, str(tmp_path))

    assert FOLDERS[variable]() == tmp_path


def test_a_registry_needs_no_home_where_the_variables_are_set(homeless, monkeypatch, tmp_path):
    """Nothing else in it looks for one."""
    monkeypatch.setenv("APL_GUARD_REGISTRY", str(tmp_path / "prefixes"))
    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path / "cache"))

    assert PrefixRegistry().root == tmp_path / "prefixes"
