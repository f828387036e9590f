"""Prefixes as embeddings of other programs, and back."""

import importlib.util
import io
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

from apl_guard import Guard, InvalidInput, Prefix, PrefixInvalid, exchange
from apl_guard.exchange import Embedding, bind, convert_pickle, embedding_keys, from_embedding, is_pickle, to_embedding
from apl_guard.testing import tiny_pipe

needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="needs processes whose resources are limited")
SLOT = "text_encoder"


@pytest.fixture
def exported(prefix, tmp_path):
    path = tmp_path / f"{prefix.embedding_name}.safetensors"
    path.write_bytes(to_embedding(prefix))
    return path


@pytest.fixture(scope="module")
def wide(prefix):
    """A prefix for two text encoders, as of SDXL."""
    slots = (SLOT, "text_encoder_2")
    one = prefix.metadata
    changes = {name: dict.fromkeys(slots, getattr(one, name)[SLOT]) for name in ("widths", "fingerprints", "traits")}
    vectors = prefix.vectors[SLOT]
    return Prefix({SLOT: vectors, "text_encoder_2": vectors.flip(0)}, one.model_copy(update=changes))


class TestExport:
    """What is written is what others read."""

    def test_diffusers_loads_the_same_bits(self, pipe, exported, prefix):
        """Through its own `load_textual_inversion`."""
        before = len(pipe.tokenizer)
        pipe.load_textual_inversion(exported, token="<apl>")

        rows = pipe.text_encoder.get_input_embeddings().weight[before:]
        assert torch.equal(rows, prefix.vectors[SLOT])

    def test_it_is_no_prefix_file_and_the_error_says_what_makes_one_of_it(self, exported):
        """Metadata beside that of a prefix would be covered by no digest."""
        with pytest.raises(PrefixInvalid, match="apl-guard prefix import"):
            Prefix.load(exported)

    def test_diffusers_draws_the_same_picture_as_the_guard(self, pipe, exported, shared_pipe, prefix, draw):
        """At the same seed, bit for bit; without it the picture is another."""
        guarded = draw(Guard(shared_pipe, prefix=prefix), "a photo of a man", seed=3)
        plain = draw(pipe, "a photo of a man", seed=3)
        pipe.load_textual_inversion(exported, token="<apl>")

        drawn = draw(pipe, "<apl> a photo of a man", seed=3)

        assert torch.equal(drawn, guarded)
        assert not torch.equal(drawn, plain)

    def test_one_tensor_under_the_key_that_web_uis_know(self, exported, prefix):
        """AUTOMATIC1111 and ComfyUI take the one tensor that is there."""
        tensors = load_file(exported)

        assert list(tensors) == ["emb_params"]
        assert tensors["emb_params"].dtype == torch.float32
        assert torch.equal(tensors["emb_params"], prefix.vectors[SLOT])

    def test_two_text_encoders(self, wide, pipe, tmp_path):
        """Each tensor goes where its key says, as diffusers documents it for SDXL."""
        (tmp_path / "two.safetensors").write_bytes(to_embedding(wide))
        tensors = load_file(tmp_path / "two.safetensors")
        second = tiny_pipe()

        assert sorted(tensors) == ["clip_g", "clip_l"]
        for key, other, slot in (("clip_l", pipe, SLOT), ("clip_g", second, "text_encoder_2")):
            before = len(other.tokenizer)
            pipe.load_textual_inversion(
                {key: tensors[key]}, token="<apl>", text_encoder=other.text_encoder, tokenizer=other.tokenizer
            )
            rows = other.text_encoder.get_input_embeddings().weight[before:]
            assert torch.equal(rows, wide.vectors[slot])

    @pytest.mark.parametrize(
        ("kinds", "keys"),
        [
            ({"text_encoder": "t5"}, ["emb_params"]),
            ({"text_encoder": "clip_text_model", "text_encoder_2": "clip_text_model"}, ["clip_l", "clip_g"]),
            (
                {"text_encoder": "clip_text_model", "text_encoder_2": "clip_text_model", "text_encoder_3": "t5"},
                ["clip_l", "clip_g", "t5xxl"],
            ),
            ({"text_encoder": 768, "text_encoder_2": 4096}, ["clip_l", "t5xxl"]),
        ],
    )
    def test_keys_of_families(self, kinds, keys):
        """SD1.x, SDXL, SD3; and a file from before there were traits, by width."""
        assert list(embedding_keys(kinds).values()) == keys

    @pytest.mark.parametrize("kinds", [{"a": "bert", "b": "t5"}, {"a": "t5", "b": "t5"}, {"a": 5, "b": 768}])
    def test_encoders_that_no_program_has_a_name_for(self, kinds):
        """The message says how to name them."""
        with pytest.raises(InvalidInput, match="=KEY"):
            embedding_keys(kinds)

    def test_keys_by_hand(self, wide):
        """Missing, twice, or no name at all is an error of the field."""
        assert to_embedding(wide, {SLOT: "left", "text_encoder_2": "right"})
        for keys in ({SLOT: "x"}, {SLOT: "x", "text_encoder_2": "x"}, {SLOT: "../x", "text_encoder_2": "y"}):
            with pytest.raises(InvalidInput, match="key"):
                to_embedding(wide, keys)


class TestImport:
    """What others trained becomes a prefix of the model that it was trained with."""

    def test_an_export_is_the_prefix_again(self, prefix, wide):
        """Without a model: vectors, metadata and digest."""
        for made in (prefix, wide):
            again = from_embedding(to_embedding(made), where="x")
            assert isinstance(again, Prefix)
            assert (again.digest, again.metadata) == (made.digest, made.metadata)

    def test_an_export_that_was_changed(self, prefix):
        """The digest tells."""
        content = bytearray(to_embedding(prefix))
        content[-1] ^= 1

        with pytest.raises(PrefixInvalid, match="digest"):
            from_embedding(bytes(content), where="x")

    @pytest.mark.parametrize("key", ["emb_params", "<cat>", "clip_l"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_textual_inversions(self, pipe, prefix, tmp_path, key, dtype):
        """Of kohya, AUTOMATIC1111 and diffusers; the guard uses it."""
        vectors = prefix.vectors[SLOT].to(dtype)
        save_file({key: vectors}, tmp_path / "ti.safetensors", {"ss_steps": "100"})

        found = from_embedding((tmp_path / "ti.safetensors").read_bytes(), where="x")
        made = bind(found, pipe, "taken")

        assert torch.equal(made.vectors[SLOT], vectors.float())
        assert made.metadata.evaluation["imported"]["sha256"] == found.source
        assert Guard(pipe, prefix=made)("a man", num_inference_steps=1).images

    def test_two_text_encoders(self, tmp_path):
        """By the names of their keys, in the order of their kinds."""

        first, second = tiny_pipe(), tiny_pipe(seed=1)
        parts = {
            "text_encoder": first.text_encoder,
            "tokenizer": first.tokenizer,
            "text_encoder_2": second.text_encoder,
            "tokenizer_2": second.tokenizer,
            "unet": None,
        }
        two = SimpleNamespace(components=parts)
        vectors = {"clip_g": torch.ones(3, 32), "clip_l": torch.zeros(3, 32)}
        save_file(vectors, tmp_path / "ti.safetensors")

        made = bind(from_embedding((tmp_path / "ti.safetensors").read_bytes(), where="x"), two, "two")

        assert {slot: float(v.mean()) for slot, v in made.vectors.items()} == {SLOT: 0.0, "text_encoder_2": 1.0}
        with pytest.raises(InvalidInput, match="SLOT=KEY"):
            bind(Embedding({"clip_l": vectors["clip_l"].numpy(), "odd": vectors["clip_g"].numpy()}, ""), two, "two")

    def test_what_does_not_fit(self, pipe):
        """Another width, names and keys that are none; each names its field."""
        fine = Embedding({"emb_params": torch.ones(2, 32).numpy()}, "")
        with pytest.raises(PrefixInvalid, match="33 wide"):
            bind(Embedding({"emb_params": torch.ones(2, 33).numpy()}, ""), pipe, "x")
        with pytest.raises(InvalidInput, match="name"):
            bind(fine, pipe, "../x")
        for keys in ({"text_encoder_9": "emb_params"}, {SLOT: "nothing"}):
            with pytest.raises(InvalidInput, match="key"):
                bind(fine, pipe, "x", keys)

    def test_files_that_are_no_embeddings(self, prefix):
        """A picture's bytes, no tensors, and slots that do not belong to them."""
        with pytest.raises(PrefixInvalid):
            from_embedding(b"\x89PNG" + bytes(99), where="x")
        with pytest.raises(PrefixInvalid, match="no tensor"):
            from_embedding(struct.pack("<Q", 2) + b"{}", where="x")
        content = to_embedding(prefix).replace(b"text_encoder=emb_params", b"text_encoder=emb_parama")
        with pytest.raises(PrefixInvalid, match="slots"):
            from_embedding(content, where="x")


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def deep(levels):
    """A value whose hash takes 2^levels steps."""
    value = ()
    for _ in range(levels):
        value = (value, value)
    return value


def dict_with_key(levels):
    """A pickle of {deep: 1}, written by hand because making that dict here would take as long."""
    body = b"\x80\x02}"
    body += b")q\x00"
    for i in range(levels):
        body += b"h" + bytes([i]) + b"\x86q" + bytes([i + 1])
    return body + b"K\x01s."


@needs_limits
class TestPickles:
    """They are converted by another process, which knows tensors only."""

    @pytest.fixture
    def vectors(self, prefix):
        return prefix.vectors[SLOT]

    def test_the_file_of_the_authors(self, pipe, vectors, tmp_path):
        """A ParameterDict under the name of their placeholder; bit for bit."""
        content = {
            "string_to_token": {"alz": torch.tensor(265)},
            "string_to_param": nn.ParameterDict({"alz": nn.Parameter(vectors)}),
        }
        torch.save(content, tmp_path / "apl.pt")
        assert is_pickle((tmp_path / "apl.pt").read_bytes())

        made = bind(from_embedding(convert_pickle(tmp_path / "apl.pt"), where="x"), pipe, "authors")

        assert torch.equal(made.vectors[SLOT], vectors)
        assert Guard(pipe, prefix=made)("a man", num_inference_steps=1).images

    def test_the_file_of_web_uis(self, vectors, tmp_path):
        """In the older format of torch.save, with half the precision and fields of its own."""
        content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors.half()}, "name": "apl", "step": 3}
        torch.save(content, tmp_path / "a1111.pt", _use_new_zipfile_serialization=False)

        found = from_embedding(convert_pickle(tmp_path / "a1111.pt"), where="x")

        assert torch.equal(torch.from_numpy(found.vectors["emb_params"]), vectors.half().float())

    def test_code_does_not_run(self, tmp_path):
        """Neither here nor in the other process; deep in what looks like an embedding."""
        path = tmp_path / "evil.pt"
        path.write_bytes(pickle.dumps({"string_to_param": {"*": Evil(tmp_path / "canary")}}))

        with pytest.raises(PrefixInvalid, match="other than tensors"):
            convert_pickle(path)
        assert not (tmp_path / "canary").exists()

    def test_code_in_a_zip_does_not_run(self, vectors, tmp_path):
        """As `torch.save` writes it."""
        torch.save({"x": vectors}, tmp_path / "good.pt")
        with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "evil.pt", "w") as evil:
            for item in good.infolist():
                content = good.read(item)
                if item.filename.endswith("data.pkl"):
                    content = pickle.dumps(Evil(tmp_path / "canary"), protocol=2)
                evil.writestr(item.filename, content)

        with pytest.raises(PrefixInvalid, match="cannot be converted"):
            convert_pickle(tmp_path / "evil.pt")
        assert not (tmp_path / "canary").exists()

    @pytest.mark.skipif(sys.version_info >= (3, 14), reason="tuples remember their hashes, so this file is soon read")
    def test_time_is_limited(self, tmp_path):
        """A few bytes that would take years to hash: the process is ended by its limit, not by a clock here."""
        assert pickle.loads(dict_with_key(3)) == {deep(3): 1}
        (tmp_path / "slow.pt").write_bytes(dict_with_key(60))

        with pytest.raises(PrefixInvalid, match="ended with -"):
            convert_pickle(tmp_path / "slow.pt")

    @pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of address space")
    def test_memory_is_limited(self, tmp_path):
        """A zip of half a megabyte that unpacks to 512 megabytes."""
        with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
            bomb.writestr("bomb/version", "3")
            with bomb.open("bomb/data.pkl", "w") as stream:
                for _ in range(512):
                    stream.write(bytes(1 << 20))
        assert (tmp_path / "bomb.pt").stat().st_size < 4 << 20

        with pytest.raises(PrefixInvalid, match="cannot be converted"):
            convert_pickle(tmp_path / "bomb.pt")

    @pytest.mark.parametrize(
        "content", [None, [1, 2], {}, {1: 2}, {"string_to_param": {}}, {"string_to_param": {"a": 1, "b": 2}}]
    )
    def test_what_is_no_embedding(self, content):
        """What the other process makes of it, asked here."""
        spec = importlib.util.spec_from_file_location("unpickle", Path(exchange.__file__).with_name("_unpickle.py"))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

        with pytest.raises(SystemExit, match="11"):
            module.find_tensors(content)

    def test_safetensors_are_no_pickle_whatever_they_begin_with(self):
        """Their first byte is of the header's length, which is that of a pickle for one length in 32."""
        contents = [save({"<" + "x" * length + ">": torch.ones(2, 8)}) for length in range(1, 400)]
        assert b"\x80" in {content[:1] for content in contents}

        assert not any(is_pickle(content) for content in contents)
        for new_format in (True, False):
            written = io.BytesIO()
            torch.save({"<a>": torch.ones(2, 8)}, written, _use_new_zipfile_serialization=new_format)
            assert is_pickle(written.getvalue())

    def test_files_that_are_not_there_or_too_large(self, tmp_path):
        """Before any process is started."""
        with pytest.raises(PrefixInvalid, match="No such file"):
            convert_pickle(tmp_path / "nothing.pt")
        with (tmp_path / "large.pt").open("wb") as stream:
            stream.truncate(17 << 20)
        with pytest.raises(PrefixInvalid, match="larger than"):
            convert_pickle(tmp_path / "large.pt")
