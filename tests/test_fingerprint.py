"""The fingerprint changes with the text encoder and with nothing else."""

import copy

import pytest
import torch

from apl_guard import ModelInvalid
from apl_guard.encoder.fingerprint import fingerprint
from apl_guard.encoder.weights import remembered
from apl_guard.testing import text


@pytest.fixture(name="of")
def _of(pipe):
    return lambda: fingerprint(pipe.text_encoder, pipe.tokenizer)


def test_copies_agree(pipe, of):
    """A deep copy, a float16 copy, and the same weights under the names of older transformers."""

    class Older(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.text_model = inner
            self.config = inner.config

    expected = of()

    assert fingerprint(copy.deepcopy(pipe.text_encoder), copy.deepcopy(pipe.tokenizer)) == expected
    assert fingerprint(copy.deepcopy(pipe.text_encoder).half(), pipe.tokenizer) == expected
    inner = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
    assert fingerprint(Older(inner), pipe.tokenizer) == expected


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "new tensor"])
def test_one_changed_weight(pipe, of, in_place):
    """Noticed although the digest is kept between calls."""
    before = of()
    layer = pipe.text_encoder.get_input_embeddings()
    with torch.no_grad():
        if in_place:
            layer.weight[5, 5] += 0.5
        else:
            changed = layer.weight.clone()
            changed[5, 5] += 0.5
            layer.weight = torch.nn.Parameter(changed)

    assert of().weights != before.weights
    assert of().tokenizer == before.tokenizer


def test_a_change_behind_the_back_of_autograd(pipe, of):
    """Writing through `.data` leaves no trace in versions; the sample of values sees a fine-tuned tensor."""
    before = of()
    pipe.text_encoder.get_input_embeddings().weight.data.mul_(1.01)

    assert of().weights != before.weights


def test_one_value_of_any_bias_changed_behind_the_back_of_autograd(pipe):
    """Vectors of up to 256 values are looked at whole, so that no single value can change."""
    for weight in pipe.text_encoder.parameters():
        if weight.ndim == 1:
            for place in (0, len(weight) // 2, -1):
                before = remembered(pipe.text_encoder)
                weight.data[place] += 1

                assert remembered(pipe.text_encoder) is not before


def test_an_encoder_of_several_types_of_numbers(pipe):
    """Such as one whose matrices are of eight bits: each of its tensors is looked at as well."""
    for weight in pipe.text_encoder.parameters():
        weight.data = weight.to(torch.float8_e4m3fn if weight.ndim > 1 else torch.float16)
    for weight in pipe.text_encoder.parameters():
        before = remembered(pipe.text_encoder)
        assert remembered(pipe.text_encoder) is before
        weight.data = (weight.float() + 1).to(weight.dtype)
        assert remembered(pipe.text_encoder) is not before


def test_another_function_of_the_same_weights(pipe, of):
    """Another activation makes it another encoder."""
    other = copy.deepcopy(pipe.text_encoder)
    other.config.hidden_act = "gelu"

    assert fingerprint(other, pipe.tokenizer) != of()


def test_tokenizers_that_differ(pipe, of):
    """An added token, and another length."""
    before = of()
    longer = copy.deepcopy(pipe.tokenizer)
    longer.model_max_length = 78
    pipe.tokenizer.add_tokens(["<new>"])

    assert before.tokenizer != fingerprint(pipe.text_encoder, longer).tokenizer
    assert before.tokenizer != of().tokenizer


def test_the_state_of_a_tokenizer_does_not_count(pipe, of):
    """A call leaves truncation and padding behind on the shared object."""
    before = of()
    pipe.tokenizer(["a", "b " * 99], padding="max_length", truncation=True, max_length=9)

    assert fingerprint(pipe.text_encoder, copy.deepcopy(pipe.tokenizer)) == before


def test_weights_that_accelerate_keeps_elsewhere(pipe, of):
    """Offloaded layer by layer, the weights are loaded for one moment each; they are still the same."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    before = of()
    accelerate.cpu_offload(pipe.text_encoder, execution_device=torch.device("cpu"))

    assert next(pipe.text_encoder.parameters()).is_meta
    assert of() == before
    memory = remembered(pipe.text_encoder)
    assert remembered(pipe.text_encoder) is memory


def test_moving_the_encoder_reads_nothing_again(pipe):
    """Offloading to and fro in each call puts the same values in other places."""
    memory = remembered(pipe.text_encoder)
    for weight in pipe.text_encoder.parameters():
        weight.data = weight.data.clone()

    assert remembered(pipe.text_encoder) is memory


def test_weights_that_are_nowhere(pipe):
    """Nobody can tell which encoder it is."""
    with pytest.raises(ModelInvalid, match="not in memory"):
        fingerprint(pipe.text_encoder.to("meta"), pipe.tokenizer)


@pytest.mark.parametrize(
    ("model", "expected"),
    [(text.clip, "68417f6e5164"), (text.t5, "d16cb46c"), (text.bert, "ff5f0e13"), (text.m_clip, "b3c17bd8")],
    ids=["CLIP", "T5", "BERT", "XLM-RoBERTa"],
)
def test_tokenizers_have_one_digest_under_every_version_of_transformers(model, expected):
    """Version 4 has other classes for them, some written in Python: a prefix trained under one goes with the other."""
    assert fingerprint(*model()).tokenizer.startswith(expected)
