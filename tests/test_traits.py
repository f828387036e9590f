"""How close a text encoder is to the one that a prefix was trained with."""

import base64
import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from apl_guard import ModelInvalid
from apl_guard.encoder.fingerprint import fingerprint
from apl_guard.encoder.traits import Tier, Traits, _probe, _sketch, compare, traits_of
from apl_guard.testing import tiny_pipe


@pytest.fixture(scope="module", name="reference")
def _reference():
    """Fingerprint and traits of a text encoder, as a prefix keeps them."""
    pipe = tiny_pipe()
    return fingerprint(pipe.text_encoder, pipe.tokenizer), traits_of(pipe.text_encoder, pipe.tokenizer)


def changed(pipe, share, seed=0):
    """A fine-tuned text encoder: every matrix but the token embedding moved by a share of its size."""
    generator = torch.Generator().manual_seed(seed)
    table = pipe.text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        for weight in pipe.text_encoder.parameters():
            if weight.ndim == 2 and weight is not table:
                weight += share * weight.std() * torch.randn(weight.shape, generator=generator)
    return pipe


def test_copies_are_exact(pipe, reference):
    """In float32, in float16 and back, compiled, and under older names."""
    for encoder in (copy.deepcopy(pipe.text_encoder), copy.deepcopy(pipe.text_encoder).half().float()):
        assert compare(*reference, encoder, pipe.tokenizer).tier == Tier.EXACT
    assert compare(*reference, torch.compile(pipe.text_encoder), pipe.tokenizer).tier == Tier.EXACT


def test_a_copy_in_bfloat16_is_compatible(pipe, reference):
    """Its weights are those of the original, rounded; nothing needs to be measured."""
    found = compare(*reference, pipe.text_encoder.to(torch.bfloat16), pipe.tokenizer)

    assert (found.tier, found.distance) == (Tier.COMPATIBLE, None)
    assert "bfloat16" in found.why


def test_a_prefix_made_in_bfloat16_fits_the_original(pipe, reference):
    """The other way round."""
    original = tiny_pipe()
    rounded = pipe.text_encoder.to(torch.bfloat16)
    made_for = fingerprint(rounded, pipe.tokenizer), traits_of(rounded, pipe.tokenizer)

    assert compare(*made_for, original.text_encoder, original.tokenizer).tier == Tier.COMPATIBLE
    assert compare(*made_for, rounded, pipe.tokenizer).tier == Tier.EXACT


def test_added_tokens_are_compatible_and_named(pipe, reference):
    """As after loading a textual inversion: the rows that the prefix was trained with are the same."""
    pipe.tokenizer.add_tokens(["<mine>", "<yours>"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))

    found = compare(*reference, pipe.text_encoder, pipe.tokenizer)

    assert found.tier == Tier.COMPATIBLE
    assert "2 tokens added" in found.why


@pytest.mark.parametrize(("share", "tier"), [(1e-3, Tier.COMPATIBLE), (0.1, Tier.MODIFIED)])
def test_fine_tuning(pipe, reference, share, tier):
    """So slight that the answers stay within one percent, or more."""
    found = compare(*reference, changed(pipe, share).text_encoder, pipe.tokenizer)

    assert found.tier == tier
    assert f"{found.distance:.4f}" in found.why


def test_other_token_embeddings_are_modified(pipe, reference):
    """However small the change: the prefix stands among them."""
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight[3] *= 1.5

    found = compare(*reference, pipe.text_encoder, pipe.tokenizer)

    assert found.tier == Tier.MODIFIED
    assert "token embeddings" in found.why


def test_adapters_are_modified_although_the_weights_under_them_are_the_same(pipe, reference):
    """LoRA renames the weights that it wraps."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    before = fingerprint(pipe.text_encoder, pipe.tokenizer)
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), pipe.text_encoder)

    found = compare(*reference, pipe.text_encoder, pipe.tokenizer)

    assert found.tier == Tier.MODIFIED
    assert "adapters" in found.why
    assert fingerprint(pipe.text_encoder, pipe.tokenizer) != before


def test_another_architecture_or_tokenizer_is_unknown(pipe, reference):
    """So is an encoder for which the prefix holds no traits."""
    made_for, traits = reference
    slim = tiny_pipe(seed=3)

    assert compare(made_for, None, slim.text_encoder, slim.tokenizer).tier == Tier.UNKNOWN
    slim.text_encoder.config.hidden_act = "gelu"
    assert "architecture" in compare(made_for, traits, slim.text_encoder, slim.tokenizer).why
    pipe.tokenizer.pad_token = "!"
    found = compare(made_for, traits, pipe.text_encoder, pipe.tokenizer)
    assert (found.tier, found.why) == (Tier.UNKNOWN, "another tokenizer")


class TestProjection:
    """It makes the pooled output, which only some pipelines use."""

    @pytest.fixture(name="projected")
    def _projected(self, pipe):
        from transformers import CLIPTextModelWithProjection

        found = CLIPTextModelWithProjection(pipe.text_encoder.config).eval()
        inner, source = (getattr(one, "text_model", one) for one in (found, pipe.text_encoder))
        inner.load_state_dict(source.state_dict(), strict=False)
        return found

    def test_an_encoder_with_and_without_one_is_the_same(self, pipe, projected, reference):
        """SD1.x loads it without, SD3 and Flux with."""
        assert compare(*reference, projected, pipe.tokenizer).tier == Tier.EXACT

    def test_where_both_have_one_it_counts(self, pipe, projected):
        """Although the fingerprint leaves it out."""
        made_for = fingerprint(projected, pipe.tokenizer), traits_of(projected, pipe.tokenizer)
        with torch.no_grad():
            projected.text_projection.weight *= 1.1

        found = compare(*made_for, projected, pipe.tokenizer)

        assert found.tier == Tier.MODIFIED
        assert "projection" in found.why


@pytest.mark.parametrize("share", [1e-3, 1e-2, 0.1, 1.0])
def test_distances_of_sketches_are_distances(share):
    """Within a quarter, which is six standard deviations of the estimate."""
    random = np.random.default_rng(int(1 / share))
    a = random.standard_normal(4 * 77 * 32).astype("f4")
    b = a + share * random.standard_normal(len(a)).astype("f4")

    found = np.linalg.norm(_sketch(a) - _sketch(b)) / np.linalg.norm(_sketch(a))

    assert found == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=0.25)


def test_t5_has_one_table_under_two_names(reference):
    """Versions of transformers save it once or twice."""
    from transformers import T5Config, T5EncoderModel

    from apl_guard.encoder.weights import table_name, weights_of

    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    encoder = T5EncoderModel(config).eval()

    names = list(weights_of(encoder))

    assert table_name(encoder) == "shared.weight"
    assert [name for name in names if "embed" in name or "shared" in name] == ["shared.weight"]
    assert len(base64.b64decode(_probe(encoder, 64))) == 1024


def test_an_encoder_that_answers_with_no_numbers_has_no_traits(pipe):
    """No distance to it could be told."""
    with torch.no_grad():
        next(pipe.text_encoder.parameters())[:] = torch.nan

    with pytest.raises(ModelInvalid, match="not numbers"):
        traits_of(pipe.text_encoder, pipe.tokenizer)


def test_traits_from_strangers_are_checked(reference):
    """A probe of another length, or of values that are not finite, and digests that are none."""
    fields = reference[1].model_dump()
    nan = base64.b64encode(np.full(256, np.nan, "<f4").tobytes()).decode()
    for change in ({"probe": "AAAA"}, {"probe": nan}, {"probe": "*"}, {"embedding": "x"}, {"vocabulary": 0}):
        with pytest.raises(ValidationError):
            Traits(**(fields | change))
