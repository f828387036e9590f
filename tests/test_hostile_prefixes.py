"""Files from strangers: none of them is taken for a prefix, and none of them costs much."""

import json
import os
import struct
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from apl_guard import Fingerprint, Prefix, PrefixInvalid, PrefixMetadata

OF = {"weights": "ab" * 32, "tokenizer": "cd" * 32}


def metadata(**changes):
    fields = {"name": "demo", "n": 2, "widths": {"text_encoder": 4}, "created": datetime(2026, 1, 1, tzinfo=UTC)}
    return PrefixMetadata(**(fields | {"fingerprints": {"text_encoder": Fingerprint(**OF)}} | changes))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a good file: two vectors of width four."""
    values = np.arange(8, dtype="<f4").reshape(2, 4)
    folder = Prefix({"text_encoder": values}, metadata()).save(tmp_path_factory.mktemp("good") / "demo")
    return (folder / "prefix.safetensors").read_bytes()


def taken_apart(content):
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_together(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _entry(**changes):
    def tamper(header, body):
        header["text_encoder"] |= changes
        return put_together(header, body)

    return tamper


def _body(*values):
    """Other values, with the digest that belongs to them: only the values themselves are wrong."""
    return lambda header, _: put_together(header, np.array(values * 8, "<f4")[:8].tobytes())


def _add(name, **entry):
    added = {"dtype": "F32", "shape": [1, 1], "data_offsets": [32, 36]} | entry
    return lambda header, body: put_together(header | {name: added}, body + bytes(4))


def _metadata(**changes):
    return _metadata_text(lambda text: json.dumps(json.loads(text) | changes, sort_keys=True, separators=(",", ":")))


def _metadata_text(change):
    def tamper(header, body):
        header["__metadata__"]["apl_guard"] = change(header["__metadata__"]["apl_guard"])
        return put_together(header, body)

    return tamper


def _many(count):
    def tamper(header, body):
        more = {f"t{i}": {"dtype": "F32", "shape": [0, 0], "data_offsets": [32, 32]} for i in range(count)}
        return put_together(header | more, body)

    return tamper


def _header_text(change):
    return lambda header, body: put_together(change(json.dumps(header)).encode(), body)


def _as(encoding):
    return lambda header, body: put_together(json.dumps(header).encode(encoding), body)


PICKLE = b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
NESTED = '{"a":' * 300 + "1" + "}" * 300
HOSTILE = {
    # No safetensors file at all.
    "empty": lambda h, b: b"",
    "short": lambda h, b: b"1234567",
    "length alone": lambda h, b: struct.pack("<Q", 0),
    "pickle": lambda h, b: PICKLE,
    "pickle behind a length": lambda h, b: put_together(PICKLE, b),
    "zip of a torch file": lambda h, b: b"PK\x03\x04" + bytes(200),
    "a picture": lambda h, b: b"\x89PNG\r\n\x1a\n" + bytes(200),
    "zeros": lambda h, b: bytes(4096),
    # The header as a whole.
    "header longer than the file": lambda h, b: struct.pack("<Q", 1 << 62) + b"{}",
    "header of a negative length": lambda h, b: struct.pack("<q", -1) + b"{}",
    "header one byte too long": lambda h, b: struct.pack("<Q", 1 << 16) + b"{}",
    "huge header": lambda h, b: put_together(json.dumps(h).encode() + b" " * (64 << 10), b),
    "huge file": lambda h, b: put_together(h, b + bytes(4 << 20)),
    "deep nesting": lambda h, b: put_together(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b),
    "nesting that json allows": lambda h, b: put_together(NESTED.encode(), b),
    "header is a list": lambda h, b: put_together(b"[]", b),
    "header is a number": lambda h, b: put_together(b"1", b),
    "header is not text": lambda h, b: put_together(b"{\xff\xfe}", b),
    "header in UTF-16": _as("utf-16-le"),
    "header in UTF-32": _as("utf-32-le"),
    "header with a byte order mark": _as("utf-8-sig"),
    "blanks before the header": _header_text(lambda text: "  " + text),
    "two headers": _header_text(lambda text: text + text),
    "comment in the header": _header_text(lambda text: text + "// see?"),
    "key twice": lambda h, b: put_together(json.dumps(h)[:-1].encode() + b', "text_encoder": 1}', b),
    "metadata twice": lambda h, b: put_together(json.dumps(h)[:-1].encode() + b', "__metadata__": {}}', b),
    "not a number": _header_text(lambda text: text.replace("[0, 32]", "[NaN, 32]")),
    "infinite number": _header_text(lambda text: text.replace("[0, 32]", "[0, 1e999]")),
    "number of 5,000 digits": _header_text(lambda text: text.replace("[0, 32]", f"[0, {'9' * 5000}]")),
    # Its metadata.
    "no metadata": lambda h, b: put_together({"text_encoder": h["text_encoder"]}, b),
    "metadata is a list": lambda h, b: put_together(h | {"__metadata__": []}, b),
    "metadata is null": lambda h, b: put_together(h | {"__metadata__": None}, b),
    "metadata is not text": lambda h, b: put_together(h | {"__metadata__": {"apl_guard": 1, "apl_guard_digest": 2}}, b),
    "metadata too many": lambda h, b: put_together(h | {"__metadata__": h["__metadata__"] | {"x": "y"}}, b),
    "20,000 metadata entries": lambda h, b: put_together(h | {"__metadata__": {str(i): "" for i in range(20_000)}}, b),
    # The tensors.
    "integers": _entry(dtype="I32"),
    "booleans": _entry(dtype="BOOL", data_offsets=[0, 8]),
    "8-bit floats": _entry(dtype="F8_E4M3", data_offsets=[0, 8]),
    "doubles": _entry(dtype="F64", shape=[1, 4]),
    "dtype is a list": _entry(dtype=["F32"]),
    "dtype is missing": lambda h, b: put_together(h | {"text_encoder": {"shape": [2, 4], "data_offsets": [0, 32]}}, b),
    "no tensors": lambda h, b: put_together({"__metadata__": h["__metadata__"]}, b""),
    "tensor is null": lambda h, b: put_together(h | {"text_encoder": None}, b),
    "other shape": _entry(shape=[4, 2]),
    "flat": _entry(shape=[8]),
    "three axes": _entry(shape=[1, 2, 4]),
    "no axes": _entry(shape=[]),
    "shape of nothing": _entry(shape=[0, 1 << 62], data_offsets=[0, 0]),
    "shape that overflows": _entry(shape=[1 << 32, 1 << 32]),
    "negative shape": _entry(shape=[-2, -4]),
    "shape with a boolean": _entry(shape=[2, True]),
    "shape with a text": _entry(shape=["2", "4"]),
    "65 vectors": lambda h, b: put_together(
        h | {"text_encoder": {"dtype": "F32", "shape": [65, 4], "data_offsets": [0, 1040]}}, bytes(1040)
    ),
    "vectors of width 8,193": lambda h, b: put_together(
        h | {"text_encoder": {"dtype": "F16", "shape": [2, 8193], "data_offsets": [0, 32772]}}, bytes(32772)
    ),
    "fewer bytes than the shape needs": _entry(data_offsets=[0, 16]),
    "offsets outside": _entry(data_offsets=[32, 64]),
    "offsets backwards": _entry(data_offsets=[32, 0]),
    "offsets with fractions": _entry(data_offsets=[0.0, 32.0]),
    "three offsets": _entry(data_offsets=[0, 16, 32]),
    "offsets beyond 64 bits": _entry(data_offsets=[1 << 64, (1 << 64) + 32]),
    "unknown field": _entry(surprise=1),
    "bytes behind": lambda h, b: put_together(h, b + b"more"),
    "bytes before": lambda h, b: _entry(data_offsets=[4, 36])(h, b"more" + b),
    "bytes missing": lambda h, b: put_together(h, b[:-4]),
    "tensor over a tensor": lambda h, b: put_together(h | {"text_encoder_2": h["text_encoder"]}, b),
    "hidden tensor": _add("evil"),
    "slot that no metadata names": _add("text_encoder_2"),
    "traversal": _add("../../etc/passwd"),
    "name of control characters": _add("\x1b[2Jevil\r\n\u202e\x00"),
    "name of half a character": _add("\ud800"),
    "empty name": _add(""),
    "a million tensors, as far as they fit": _many(700),
    # The values.
    "nan": _body(np.nan),
    "one nan": _body(1, 1, 1, np.nan),
    "infinity": _body(np.inf),
    "minus infinity": _body(0, -np.inf),
    "other vectors, same metadata": _body(0),
    # What our own metadata say.
    "other metadata, same vectors": _metadata(name="other"),
    "metadata is no JSON": _metadata_text(lambda text: text[:-1]),
    "metadata in another order": _metadata_text(lambda text: json.dumps(dict(reversed(json.loads(text).items())))),
    "metadata with blanks": _metadata_text(lambda text: text + " "),
    "metadata key twice": _metadata_text(lambda text: text[:-1] + ',"n":2}'),
    "number as a text": _metadata(n="2"),
    "other format": _metadata(format="apl-guard/9"),
    "unknown metadata field": _metadata(surprise=1),
    "field missing": _metadata_text(lambda text: text.replace('"n":2,', "")),
    "n too large": _metadata(n=10**9),
    "n of zero": _metadata(n=0),
    "n that the tensor does not have": _metadata(n=3),
    "width that the tensor does not have": _metadata(widths={"text_encoder": 5}),
    "bad fingerprint": _metadata(fingerprints={"text_encoder": {"weights": "x", "tokenizer": "y"}}),
    "fingerprint of another slot": _metadata(fingerprints={"text_encoder_2": OF}),
    "slot of another name": _metadata(widths={"../x": 4}, fingerprints={"../x": OF}),
    "no slots": _metadata(widths={}, fingerprints={}),
    "name of a path": _metadata(name="../../evil"),
    "name with a line break": _metadata(name="evil\n"),
    "infinite result": _metadata_text(lambda text: text.replace('"evaluation":{}', '"evaluation":{"x":1e999}')),
    "deep result": _metadata_text(lambda text: text.replace('"evaluation":{}', f'"evaluation":{NESTED}')),
    "date that is none": _metadata(created="yesterday"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused(good, tmp_path, kind):
    """With one typed error that names the file and shows no control characters."""
    file = tmp_path / "prefix.safetensors"
    file.write_bytes(HOSTILE[kind](*taken_apart(good)))

    with pytest.raises(PrefixInvalid) as caught:
        Prefix.load(tmp_path)
    assert str(file) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.skipif(os.name == "nt", reason="needs pipes and devices in the file system")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "endless link", "link to nothing", "five gigabytes"])
def test_what_is_no_file_is_refused(tmp_path, kind):
    """A pipe nobody writes to must not stop the guard, an endless device must not fill the memory."""
    file = tmp_path / "prefix.safetensors"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    elif kind == "endless link":
        file.symlink_to(file)
    elif kind == "link to nothing":
        file.symlink_to(tmp_path / "nothing")
    else:
        with file.open("wb") as stream:
            stream.truncate(5 << 30)

    with pytest.raises(PrefixInvalid):
        Prefix.load(tmp_path)


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000, "\ud800"])
def test_paths_that_cannot_be(path):
    """Impossible paths are a typed error, too."""
    with pytest.raises(PrefixInvalid):
        Prefix.load(path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' resource limits")
def test_no_file_costs_much(good, tmp_path):
    """A process whose limits allow 50 ms of CPU time a file and 32 MB more memory than it has refuses them all."""
    # The largest good file there can be is read under the same limits.
    slots = ("text_encoder", "text_encoder_2")
    of = {"widths": dict.fromkeys(slots, 8192), "fingerprints": dict.fromkeys(slots, Fingerprint(**OF))}
    with pytest.raises(PrefixInvalid, match="fewer vectors"):
        Prefix(dict.fromkeys(slots, np.ones((64, 8192))), metadata(n=64, **of)).to_bytes()
    largest = Prefix(dict.fromkeys(slots, np.ones((63, 8192))), metadata(n=63, **of)).to_bytes()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "good").write_bytes(largest)
    for number, kind in enumerate(HOSTILE):
        (tmp_path / "files" / f"{number} {kind.replace('/', ' ')}").write_bytes(HOSTILE[kind](*taken_apart(good)))

    script = Path(__file__).with_name("read_prefix_limited.py")
    ended = subprocess.run(
        [sys.executable, script, tmp_path / "files"], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )

    assert ended.returncode == 0, ended.stderr
    outcomes = json.loads(ended.stdout)
    assert outcomes.pop("good") == "read"
    assert len(outcomes) == len(HOSTILE) >= 40
    assert set(outcomes.values()) == {"refused"}


def judge(tmp_path, content):
    """What is accepted must be what an independent reader sees, and be written again as the same bytes."""
    file = tmp_path / "any.safetensors"
    file.write_bytes(content)
    try:
        prefix = Prefix.load(file)
    except PrefixInvalid:
        return False
    with safe_open(file, "np") as other:
        assert set(other.keys()) == set(prefix.metadata.widths)
        for slot in other.keys():  # noqa: SIM118 - not a dict
            values = other.get_tensor(slot).astype("<f4")
            assert values.shape == (prefix.n, prefix.metadata.widths[slot])
            assert np.isfinite(values).all()
            assert prefix.vectors[slot].numpy().tobytes() == values.tobytes()
        assert other.metadata()["apl_guard"] == prefix.metadata.canonical_json()
    return True


@settings(max_examples=150)
@given(st.binary(max_size=400))
def test_random_bytes(tmp_path, content):
    """Whatever the bytes, the error is the typed one."""
    assert not judge(tmp_path, content)


@settings(max_examples=300)
@given(st.data())
def test_changed_bytes(good, tmp_path, data):
    """Bytes overwritten, cut out, put in and doubled at any places of a good file."""
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(begin, min(len(content), begin + 12)))
        content[begin:end] = data.draw(st.one_of(st.binary(max_size=12), st.just(bytes(content[begin:end]) * 2)))

    assert judge(tmp_path, bytes(content)) == (bytes(content) == good)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["F32", "F16", "BF16", "I64", "text_encoder", 0, 2, 4, 32, 1 << 63]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.data())
def test_changed_headers(good, tmp_path, data):
    """Valid JSON with any value in any place of the header or the metadata."""
    header, body = taken_apart(good)
    before = json.dumps(header)
    ours = json.loads(header["__metadata__"]["apl_guard"])
    place = data.draw(st.sampled_from(["tensor", "header", "metadata", "ours", "fingerprint"]))
    target = {
        "tensor": header["text_encoder"],
        "header": header,
        "metadata": header["__metadata__"],
        "ours": ours,
        "fingerprint": ours["fingerprints"]["text_encoder"],
    }[place]
    key = data.draw(st.sampled_from(sorted(target)) | st.text(max_size=8))
    target[key] = data.draw(values)
    if place in ("ours", "fingerprint"):
        text = json.dumps(ours, sort_keys=True, separators=(",", ":"))
        header["__metadata__"]["apl_guard"] = text

    assert judge(tmp_path, put_together(header, body)) == (json.dumps(header) == before)
