"""Pipelines in which a language model can rewrite the prompt before it is encoded."""

import copy

import pytest
from transformers import Ministral3Config, Ministral3ForCausalLM

from apl_guard import Guard, InvalidInput, PrefixNotApplied
from apl_guard.adapters.diffusers import adapter
from apl_guard.testing import FAMILIES, random_prefix, tiny_pipe

N = 4
SWITCHES = {"longcat_image": "enable_prompt_rewrite", "ernie_image": "use_pe", "ideogram_4": "prompt_upsampling"}


def _rewriting(family):
    """A pipe that rewrites its prompts unless it is told not to, and what else its calls need."""
    pipe = tiny_pipe(family=family)
    if family == "ernie_image":
        tokenizer = copy.deepcopy(pipe.tokenizer)
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
        config = Ministral3Config(**shape, hidden_size=16, intermediate_size=16, vocab_size=len(tokenizer))
        pipe.register_modules(pe=Ministral3ForCausalLM(config).eval(), pe_tokenizer=tokenizer)
    pipe.tokenizer_max_length = 40
    return pipe, {key: value for key, value in FAMILIES[family].options.items() if key != SWITCHES[family]}


@pytest.mark.parametrize("family", SWITCHES)
def test_a_prompt_that_a_language_model_would_rewrite_is_refused(family):
    """Before anything is drawn, with what to pass; where the pipeline rewrites unless it is told not to, too."""
    pipe, options = _rewriting(family)
    guard = Guard(pipe, prefix=random_prefix(pipe, n=N))
    defaults = [] if family == "ideogram_4" else [{}]

    for asked in [*defaults, *({SWITCHES[family]: value} for value in (True, 1, "yes"))]:
        with pytest.raises(InvalidInput, match=f"rewrite the prompt.* pass {SWITCHES[family]}=False"):
            guard(prompt="Mara Voss", **options, **asked)


@pytest.mark.parametrize("family", SWITCHES)
def test_a_prompt_that_was_rewritten_all_the_same_gives_no_picture(family, monkeypatch):
    """What the language model wrote has no prefix in front, and that shows."""
    pipe, options = _rewriting(family)
    guard = Guard(pipe, prefix=random_prefix(pipe, n=N))
    monkeypatch.setattr(adapter, "check_not_rewritten", lambda *_: None)
    if family == "ideogram_4":  # a language model is no part of the tiny pipe
        monkeypatch.setattr(pipe, "upsample_prompt", lambda prompt, **_: ["a photo of Mara Voss"])

    with pytest.raises(PrefixNotApplied):
        guard(prompt="Mara Voss", **options, **{SWITCHES[family]: True})


@pytest.mark.parametrize("family", SWITCHES)
def test_a_prompt_is_guarded_where_the_language_model_is_switched_off(family):
    """Though it is in the pipe."""
    pipe, options = _rewriting(family)
    guard = Guard(pipe, prefix=random_prefix(pipe, n=N))

    outcome = guard.generate(prompt="Mara Voss", **options, **{SWITCHES[family]: False}).outcome

    assert outcome.prefix_rows == {"text_encoder": (N,)}
