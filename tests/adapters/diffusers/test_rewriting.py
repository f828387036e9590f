"""Pipelines in which a language model can rewrite the prompt before it is encoded."""

import pytest

from apl_guard import Guard, InvalidInput, PrefixNotApplied
from apl_guard.adapters.diffusers import adapter
from apl_guard.testing import FAMILIES, random_prefix, tiny_pipe

N = 4
REWRITING = {"longcat_image": ({}, "enable_prompt_rewrite=False")}


@pytest.mark.parametrize("family", REWRITING)
def test_a_prompt_that_a_language_model_would_rewrite_is_refused(family):
    """Before anything is drawn, with what to pass. If it were rewritten all the same, there would be no picture."""
    pipe, (asked, advice) = tiny_pipe(family=family), REWRITING[family]
    pipe.tokenizer_max_length = 40
    options = {name: value for name, value in FAMILIES[family].options.items() if name not in advice} | asked
    guard = Guard(pipe, prefix=random_prefix(pipe, n=N))

    with pytest.raises(InvalidInput, match=f"rewrite the prompt.* pass {advice}"):
        guard(prompt="Mara Voss", **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter, "check_not_rewritten", lambda _: None)
        with pytest.raises(PrefixNotApplied):
            guard(prompt="Mara Voss", **options)
