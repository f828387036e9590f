"""The registry finds the prefix that belongs to a text encoder."""

from datetime import timedelta

import pytest
import torch

from apl_guard import Fingerprint, InvalidInput, Prefix, PrefixInvalid, PrefixNotFound, PrefixRegistry

SLOT = "text_encoder"


@pytest.fixture
def folder(prefix, tmp_path):
    return prefix.save(tmp_path / "trained", card="# Card")


def variant(prefix, **changes):
    return Prefix({SLOT: torch.zeros_like(prefix.vectors[SLOT])}, prefix.metadata.model_copy(update=changes))


def test_registered_then_found_by_fingerprint(prefix, folder, own_registry):
    """The default registry is the one that `APL_GUARD_REGISTRY` names, and the card comes along."""
    entry = PrefixRegistry().register(folder)

    assert entry.path == own_registry / "random"
    assert (entry.path / "card.md").read_text() == "# Card"
    assert PrefixRegistry().find(prefix.metadata.fingerprints[SLOT]).digest == prefix.digest
    assert Prefix.load("random").digest == prefix.digest


def test_found_without_a_restart(prefix, folder):
    """A prefix that another process registers meanwhile is found by the next call."""
    registry = PrefixRegistry()
    with pytest.raises(PrefixNotFound):
        registry.find(prefix.metadata.fingerprints)

    PrefixRegistry().register(folder)

    assert registry.find(prefix.metadata.fingerprints).digest == prefix.digest


def test_none_for_this_encoder():
    """The error holds the fingerprint that was looked for and the command that makes a prefix."""
    wanted = Fingerprint(weights="12" * 32, tokenizer="34" * 32)

    with pytest.raises(PrefixNotFound, match=r"apl-guard train.*apl-guard prefix register") as caught:
        PrefixRegistry().find(wanted)
    assert wanted.key in str(caught.value)
    assert caught.value.fingerprint == wanted


def test_of_several_the_one_made_last(prefix, folder, tmp_path):
    """However they are called."""
    newer = variant(prefix, created=prefix.metadata.created + timedelta(days=1))
    PrefixRegistry().register(newer.save(tmp_path / "newer"), name="a-newer")
    PrefixRegistry().register(folder, name="z-older")

    assert PrefixRegistry().find(prefix.metadata.fingerprints).digest == newer.digest


def test_a_name_is_not_taken_over_silently(prefix, folder, tmp_path):
    """The same prefix again is fine, another one needs `replace`."""
    registry = PrefixRegistry()
    registry.register(folder)
    registry.register(folder)
    other = variant(prefix).save(tmp_path / "other")

    with pytest.raises(InvalidInput, match="random"):
        registry.register(other)
    assert registry.register(other, replace=True).prefix.digest != prefix.digest
    assert registry.get("random").digest != prefix.digest


@pytest.mark.parametrize("name", ["../evil", "minifaces", "", "a/b", ".hidden"])
def test_names_that_are_no_names(folder, name):
    """They could leave the registry's folder or hide another prefix."""
    with pytest.raises(InvalidInput, match="reserved or malformed"):
        PrefixRegistry().register(folder, name=name)


def test_a_damaged_prefix_is_listed_with_its_problem_and_never_used(prefix, folder):
    """It does not hide the others, and `verify` names the file."""
    registry = PrefixRegistry()
    path = registry.register(folder).path / "prefix.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")

    entry = next(e for e in registry.list() if e.name == "random")
    assert entry.prefix is None
    assert "random" in entry.problem
    with pytest.raises(PrefixNotFound, match="1 damaged"):
        registry.find(prefix.metadata.fingerprints)
    with pytest.raises(PrefixInvalid):
        registry.verify("random")


@pytest.mark.parametrize("name", ["nothing", "../registry"])
def test_verify_and_get_of_nothing(name):
    """A name that is not registered is a typed error."""
    with pytest.raises(PrefixInvalid):
        PrefixRegistry().verify(name)
    with pytest.raises(PrefixInvalid):
        PrefixRegistry().get(name)
