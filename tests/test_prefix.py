"""Prefix files: what is saved comes back, and nothing else is taken for a prefix."""

import errno
import json
import os
import struct
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
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
    """A saved prefix: its file, and its header and body to tamper with."""
    Prefix({"text_encoder": torch.arange(8.0).reshape(2, 4)}, metadata()).save(tmp_path / "demo")
    return tmp_path / "demo" / "prefix.safetensors"


def taken_apart(file):
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_together(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


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


@pytest.mark.parametrize("position", [0, 7, 8, 40, 200, -20, -1])
def test_any_changed_byte_is_noticed(saved, position):
    """In the length, the header, the metadata or the vectors."""
    content = bytearray(saved.read_bytes())
    content[position] ^= 1
    saved.write_bytes(content)

    with pytest.raises(PrefixInvalid, match=r"prefix\.safetensors"):
        Prefix.load(saved)


@settings(max_examples=100)
@given(st.binary(max_size=400))
def test_random_bytes_are_no_prefix(tmp_path, content):
    """Whatever the bytes, the error is the typed one."""
    (tmp_path / "noise").write_bytes(content)

    with pytest.raises(PrefixInvalid):
        Prefix.load(tmp_path / "noise")


def _entry(**changes):
    def tamper(header, body):
        header["text_encoder"] |= changes
        return put_together(header, body)

    return tamper


def _body(body):
    return lambda header, _: put_together(header, body)


def _add(name, entry):
    return lambda header, body: put_together(header | {name: entry}, body)


def _metadata(**changes):
    def tamper(header, body):
        fields = json.loads(header["__metadata__"]["apl_guard"]) | changes
        header["__metadata__"]["apl_guard"] = json.dumps(fields)
        return put_together(header, body)

    return tamper


NAN = np.full((2, 4), np.nan, "<f4").tobytes()
HOSTILE = {
    "empty": lambda h, b: b"",
    "short": lambda h, b: b"1234567",
    "pickle": lambda h, b: b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
    "header longer than the file": lambda h, b: struct.pack("<Q", 1 << 62) + b"{}",
    "huge header": lambda h, b: put_together(b" " * ((1 << 20) + 1), b),
    "deep nesting": lambda h, b: put_together(b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b),
    "header is a list": lambda h, b: put_together(b"[]", b),
    "header is not text": lambda h, b: put_together(b"\xff\xfe{}", b),
    "key twice": lambda h, b: put_together(json.dumps(h)[:-1].encode() + b', "text_encoder": 1}', b),
    "no metadata": lambda h, b: put_together({"text_encoder": h["text_encoder"]}, b),
    "metadata is not text": lambda h, b: put_together(h | {"__metadata__": {"apl_guard": 1, "apl_guard_digest": 2}}, b),
    "metadata too many": lambda h, b: put_together(h | {"__metadata__": h["__metadata__"] | {"x": "y"}}, b),
    "not a number": lambda h, b: put_together(json.dumps(h).replace("[0, 32]", "[NaN, 32]").encode(), b),
    "integers": _entry(dtype="I32"),
    "dtype is a list": _entry(dtype=["F32"]),
    "other shape": _entry(shape=[4, 2]),
    "shape of nothing": _entry(shape=[0, 1 << 62], data_offsets=[0, 0]),
    "shape with a boolean": _entry(shape=[2, True]),
    "offsets outside": _entry(data_offsets=[32, 64]),
    "offsets backwards": _entry(data_offsets=[32, 0]),
    "offsets with fractions": _entry(data_offsets=[0.0, 32.0]),
    "unknown field": _entry(surprise=1),
    "nan": _body(NAN),
    "bytes behind": lambda h, b: put_together(h, b + b"more"),
    "bytes missing": lambda h, b: put_together(h, b[:-4]),
    "hidden tensor": _add("evil", {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}),
    "traversal": _add("../../etc/passwd", {"dtype": "F32", "shape": [1, 0], "data_offsets": [32, 32]}),
    "other vectors, same metadata": _body(bytes(32)),
    "other metadata, same vectors": _metadata(name="other"),
    "other format": _metadata(format="apl-guard/9"),
    "unknown metadata field": _metadata(surprise=1),
    "n too large": _metadata(n=10**9),
    "bad fingerprint": _metadata(fingerprints={"text_encoder": {"weights": "x", "tokenizer": "y"}}),
    "slot of another name": _metadata(widths={"../x": 4}),
    "no slots": _metadata(widths={}, fingerprints={}),
    "name of a path": _metadata(name="../../evil"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused(saved, kind):
    """Each is one typed error that names the file and shows no control characters."""
    saved.write_bytes(HOSTILE[kind](*taken_apart(saved)))

    with pytest.raises(PrefixInvalid) as caught:
        Prefix.load(saved.parent)
    assert str(saved) in str(caught.value)
    assert str(caught.value).isprintable()


def test_escape_sequences_in_names_do_not_reach_the_terminal(saved):
    """A tensor's name is cleaned before it is shown."""
    header, body = taken_apart(saved)
    evil = "\x1b[2Jevil\r\n"
    saved.write_bytes(put_together(header | {evil: {"dtype": "F32", "shape": [1, 0], "data_offsets": [32, 32]}}, body))

    with pytest.raises(PrefixInvalid, match="evil") as caught:
        Prefix.load(saved)
    assert str(caught.value).isprintable()


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
