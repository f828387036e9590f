"""Prefix files: what is saved comes back, and nothing else is taken for a prefix."""

import copy
import errno
import os
import pickle
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError
from safetensors.torch import load_file

from apl_guard import Fingerprint, Prefix, PrefixInvalid, PrefixMetadata, StorageFailed

OF = Fingerprint(weights="ab" * 32, tokenizer="cd" * 32)


def metadata(n=2, width=4, **changes):
    fields = {
        "name": "demo",
        "n": n,
        "widths": {"text_encoder": width},
        "fingerprints": {"text_encoder": OF},
        "created": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return PrefixMetadata(**(fields | changes))


@pytest.fixture
def saved(tmp_path):
    """The file of a saved prefix."""
    Prefix({"text_encoder": torch.arange(8.0).reshape(2, 4)}, metadata()).save(tmp_path / "demo")
    return tmp_path / "demo" / "prefix.safetensors"


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.smoke
@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 20)).flatmap(
        lambda shape: arrays(np.float32, shape, elements=numbers)
    ),
    st.dictionaries(st.text(max_size=10), json_values, max_size=3),
)
def test_save_and_load_give_the_same_prefix(tmp_path, values, evaluation):
    """Values bit for bit, metadata and digest, for any shape and any evaluation."""
    prefix = Prefix({"text_encoder": values}, metadata(*values.shape, evaluation=evaluation))

    loaded = Prefix.load(prefix.save(tmp_path / "any"))

    assert loaded.vectors["text_encoder"].numpy().tobytes() == values.tobytes()
    assert loaded.metadata == prefix.metadata
    assert loaded.digest == prefix.digest


def test_other_readers_see_one_tensor_for_each_slot(saved):
    """The file is an ordinary safetensors file."""
    tensors = load_file(saved)

    assert list(tensors) == ["text_encoder"]
    assert tensors["text_encoder"].dtype == torch.float32


def test_equal_prefixes_have_equal_bytes():
    """So that one digest stands for one file; the library below writes the header in an order of chance."""
    prefix = Prefix({"text_encoder": torch.arange(8.0).reshape(2, 4)}, metadata())

    assert len({prefix.to_bytes() for _ in range(40)}) == 1


def test_several_slots(tmp_path):
    """A prefix for two text encoders of different widths."""
    both = metadata(
        widths={"text_encoder": 4, "text_encoder_2": 6},
        fingerprints={s: OF for s in ("text_encoder", "text_encoder_2")},
    )
    prefix = Prefix({"text_encoder": torch.ones(2, 4), "text_encoder_2": torch.zeros(2, 6)}, both)

    loaded = Prefix.load(prefix.save(tmp_path / "two"))

    assert {slot: tuple(v.shape) for slot, v in loaded.vectors.items()} == {
        "text_encoder": (2, 4),
        "text_encoder_2": (2, 6),
    }


def test_float16_files_are_read_as_float32(tmp_path):
    """The digest is that of the values, so it must be taken after rounding."""
    from safetensors.numpy import save

    values = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float16)
    prefix = Prefix({"text_encoder": values}, metadata())
    header = {"apl_guard": prefix.metadata.canonical_json(), "apl_guard_digest": prefix.digest}
    (tmp_path / "half.safetensors").write_bytes(save({"text_encoder": values}, header))

    assert torch.equal(Prefix.load(tmp_path / "half.safetensors").vectors["text_encoder"], torch.tensor(values).float())


def test_bfloat16_files_are_read_as_float32(tmp_path):
    """NumPy has no such type; what comes out is what torch stored."""
    from safetensors.torch import save

    values = torch.tensor([[1.0, -2.5, 3e-20, 4e20], [5, 6, 7, 8]], dtype=torch.bfloat16)
    prefix = Prefix({"text_encoder": values}, metadata())
    header = {"apl_guard": prefix.metadata.canonical_json(), "apl_guard_digest": prefix.digest}
    (tmp_path / "brain.safetensors").write_bytes(save({"text_encoder": values}, header))

    assert torch.equal(Prefix.load(tmp_path / "brain.safetensors").vectors["text_encoder"], values.float())


def test_traits_are_of_the_same_text_encoders(prefix):
    """Of each, or of none."""
    with pytest.raises(ValidationError, match="traits for"):
        metadata(traits={"text_encoder_2": prefix.metadata.traits["text_encoder"]})


def test_metadata_that_could_not_be_read_again_is_not_made():
    """A writer learns of it at once, naming the field."""
    deep = []
    for _ in range(2000):
        deep = [deep]
    for evaluation in ({"loss": float("nan")}, {"text": "x" * (1 << 20)}, {"deep": deep}):
        with pytest.raises(ValidationError, match="evaluation"):
            metadata(evaluation=evaluation)


@pytest.mark.parametrize("position", [0, 7, 8, 40, 200, -20, -1])
def test_any_changed_byte_is_noticed(saved, position):
    """In the length, the header, the metadata or the vectors."""
    content = bytearray(saved.read_bytes())
    content[position] ^= 1
    saved.write_bytes(content)

    with pytest.raises(PrefixInvalid, match=r"prefix\.safetensors"):
        Prefix.load(saved)


def test_vectors_that_do_not_fit_the_metadata_are_refused():
    """Wrong shape, missing slot, infinity."""
    for vectors in ({"text_encoder": torch.ones(3, 4)}, {}, {"text_encoder": torch.full((2, 4), torch.inf)}):
        with pytest.raises(PrefixInvalid):
            Prefix(vectors, metadata())


def test_the_vectors_are_a_copy():
    """What the caller does to its tensor afterwards does not change the prefix behind its digest."""
    mine = torch.ones(2, 4, requires_grad=True)
    prefix = Prefix({"text_encoder": mine}, metadata())
    with torch.no_grad():
        mine.zero_()

    assert prefix.vectors["text_encoder"].sum() == 8
    assert not prefix.vectors["text_encoder"].requires_grad


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_a_prefix_can_be_handed_to_another_process(prefix, again):
    """With its traits, also after its vectors were asked for."""
    assert prefix.vectors

    made = again(prefix)

    assert made.to_bytes() == prefix.to_bytes()
    assert made.digest == prefix.digest


@pytest.mark.parametrize("name", ["no/such/folder", "no-such-name", "minifaces/nothing"])
def test_a_prefix_that_is_not_there(name):
    """The message holds what was asked for."""
    with pytest.raises(PrefixInvalid, match=name):
        Prefix.load(name)


def test_saving_again_replaces_the_file_and_keeps_the_others(saved):
    """The folder may hold pictures and checkpoints of the trainer."""
    (saved.parent / "before.png").write_bytes(b"picture")
    newer = Prefix({"text_encoder": torch.ones(2, 4)}, metadata())

    newer.save(saved.parent, card="# Card")

    assert Prefix.load(saved.parent).digest == newer.digest
    assert sorted(os.listdir(saved.parent)) == ["before.png", "card.md", "prefix.safetensors"]


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, exists, call):
    """The error is typed, an earlier prefix stays, and no temporary files are left."""
    folder = tmp_path / "demo"
    old = Prefix({"text_encoder": torch.zeros(2, 4)}, metadata())
    if exists:
        old.save(folder)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    monkeypatch.setattr(os, "replace" if call == "rename" else call, full)
    with pytest.raises(StorageFailed, match="No space left") as caught:
        Prefix({"text_encoder": torch.ones(2, 4)}, metadata()).save(folder)
    monkeypatch.undo()

    assert str(folder) in str(caught.value)
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before
    if exists:
        assert Prefix.load(folder).digest == old.digest
