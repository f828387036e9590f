"""The registry finds the prefix that belongs to a text encoder."""

from datetime import UTC, datetime, timedelta

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

    assert (entry.path, entry.version) == (own_registry / "random" / "1", 1)
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
    """The error holds what was looked for and where, which may be a typing error, and the command that makes one."""
    wanted = Fingerprint(weights="12" * 32, tokenizer="34" * 32)
    registry = PrefixRegistry("./nowhere")

    with pytest.raises(PrefixNotFound, match=r"apl-guard train.*apl-guard prefix register") as caught:
        registry.find(wanted)
    assert wanted.key in str(caught.value)
    assert repr(registry) in str(caught.value)
    assert caught.value.fingerprint == wanted


def test_of_several_the_one_made_last(prefix, folder, tmp_path):
    """However they are called."""
    newer = variant(prefix, created=prefix.metadata.created + timedelta(days=1))
    PrefixRegistry().register(newer.save(tmp_path / "newer"), name="a-newer")
    PrefixRegistry().register(folder, name="z-older")

    assert PrefixRegistry().find(prefix.metadata.fingerprints).digest == newer.digest


def test_a_name_is_not_taken_over_silently(prefix, folder, tmp_path):
    """The same prefix again is fine, another one needs `replace` and becomes the next version."""
    registry = PrefixRegistry()
    registry.register(folder)
    assert registry.register(folder).version == 1
    other = variant(prefix).save(tmp_path / "other")

    with pytest.raises(InvalidInput, match="random"):
        registry.register(other)
    assert registry.register(other, replace=True).prefix.digest != prefix.digest
    assert registry.get("random").digest != prefix.digest
    assert [entry.version for entry in registry.history("random")] == [1, 2]
    assert registry.history("random")[0].prefix.digest == prefix.digest


def test_a_version_of_another_registry_keeps_its_number(prefix, folder, tmp_path):
    """Once more it changes nothing; another prefix under its number, an older one and a damaged one are refused."""
    theirs, mine = PrefixRegistry(tmp_path / "theirs"), PrefixRegistry(tmp_path / "mine")
    first = theirs.register(folder)
    second = theirs.register(variant(prefix).save(tmp_path / "second"), replace=True)

    assert [mine.adopt(second).version for _ in range(2)] == [2, 2]
    with pytest.raises(InvalidInput, match="versions only grow"):
        mine.adopt(first)
    others = PrefixRegistry(tmp_path / "others")
    others.register(folder)
    another = others.register(variant(prefix, created=datetime.now(UTC)).save(tmp_path / "another"), replace=True)
    with pytest.raises(InvalidInput, match="versions only grow"):
        mine.adopt(another)
    (another.path / "prefix.safetensors").write_bytes(b"")
    with pytest.raises(PrefixInvalid, match="too short"):
        PrefixRegistry(tmp_path / "new").adopt(others.history("random")[-1])
    assert [(e.version, e.prefix.digest) for e in mine.history("random")] == [(2, second.prefix.digest)]


@pytest.mark.parametrize("name", ["../evil", "minifaces", "", "a/b", ".hidden"])
def test_names_that_are_no_names(folder, name):
    """They could leave the registry's folder or hide another prefix."""
    with pytest.raises(InvalidInput, match=r"is the prefix that is shipped|is malformed"):
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


def test_a_version_that_was_put_there_by_hand(prefix, own_registry):
    """It is found, and the next one has the next number; but what does not say its version is not signed nor copied."""
    prefix.save(own_registry / "old" / "1", card="# Card")
    prefix.save(own_registry / "loose")  # no version of anything
    registry = PrefixRegistry()

    assert registry.find(prefix.metadata.fingerprints).digest == prefix.digest
    assert [entry.name for entry in registry.list()] == ["old", "minifaces"]
    other = PrefixRegistry(own_registry.parent / "other")
    for needs_a_version in (
        lambda: registry.sign("old", own_registry / "key"),
        lambda: registry.publish(registry.verify("old"), f"file://{other.root}"),
        lambda: other.adopt(registry.verify("old")),
    ):
        with pytest.raises(InvalidInput, match="has no version"):
            needs_a_version()
    newer = variant(prefix, created=prefix.metadata.created + timedelta(days=1))
    assert registry.register(newer.save(own_registry.parent / "newer"), "old", replace=True).version == 2
    assert Prefix.load("old").digest == newer.digest


def test_entry_json_must_be_about_what_lies_beside_it(prefix, folder, own_registry):
    """A version put into another place, or a prefix under the entry of another one."""
    registry = PrefixRegistry()
    path = registry.register(folder).path
    path.rename(path.with_name("7"))
    assert "version 1" in registry.list()[0].problem

    path.with_name("7").rename(path)
    (path / "prefix.safetensors").write_bytes(variant(prefix).to_bytes())
    assert "digest" in registry.list()[0].problem


def test_a_link_must_not_lead_out(prefix, tmp_path, own_registry):
    """Neither of a folder nor of a file; the message names it."""
    outside = prefix.save(tmp_path / "outside")
    (own_registry / "linked").mkdir(parents=True)
    (own_registry / "linked" / "1").symlink_to(outside)
    (own_registry / "file" / "1").mkdir(parents=True)
    (own_registry / "file" / "1" / "prefix.safetensors").symlink_to(outside / "prefix.safetensors")

    problems = {entry.name: entry.problem for entry in PrefixRegistry().list()}

    assert "leads out" in problems["linked"]
    assert "cannot be read" in problems["file"] or "leads out" in problems["file"]


def test_what_is_no_version_is_passed_over(folder, own_registry):
    """Other folders and files may lie about, such as what a killed process left behind."""
    registry = PrefixRegistry()
    path = registry.register(folder).path
    for name in ("0", "01", "-1", "next", ".1.abc", "9999999999"):
        path.parent.joinpath(name).mkdir()
        path.parent.joinpath(name, "prefix.safetensors").write_bytes(b"")
    (own_registry / ".git").mkdir()
    (own_registry / "readme.md").write_text("hello")

    assert [entry.version for entry in registry.list() if entry.name == "random"] == [1]
