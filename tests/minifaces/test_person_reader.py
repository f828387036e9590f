"""The reference world's detector of persons: what it learns from, and what it finds."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apl_guard.decision.decide import decide
from apl_guard.detect.detectors import Detectors
from apl_guard.detect.token_reader import TokenReader
from apl_guard.policy import Person, Policy
from apl_guard.request import Channel, GenerationRequest
from apl_guard.trainer import minifaces
from apl_guard.trainer.minifaces.build import Build
from apl_guard.trainer.minifaces.person_reader import example, invented_name, written
from apl_guard.trainer.minifaces.recipe import Recipe

PROMPT = Channel.PROMPT
REGISTER = {word.lower() for person in minifaces.people() for word in person.name.split()}


@given(st.integers())
def test_nobody_of_the_register_is_learned(seed: int) -> None:
    """Neither first nor last names; each name stands where the labels say, and nothing else of the caption does."""
    name = invented_name(Random(seed))
    text, spans = example(Random(seed))

    assert not REGISTER & set(name.lower().split())
    assert written(name, Random(seed)).strip()
    outside = "".join(
        text[a:b] for a, b in zip([0, *(b for _, b in spans)], [*(a for a, _ in spans), None], strict=True)
    )
    assert not REGISTER & set(outside.lower().replace(",", " ").split())
    assert all(text[a:b].strip() == text[a:b] != "" for a, b in spans)


def test_a_build_makes_a_detector_that_a_policy_can_use(tmp_path: Path) -> None:
    """The tiny recipe makes a folder that opens as any other detector; it finds nothing yet that could be relied on."""
    folder = Build(tmp_path, Recipe.tiny()).person_reader()

    reader = TokenReader(Person(model=str(folder)), 0.0)

    assert [bool(found) for found in reader.read(["a photo of Ada Lovelace"], until=float("inf"))] == [True]


def test_the_shipped_one_sees_everybody_and_passes_over_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `anonymize_persons`, held-out prompts of all two hundred get the prefix; those that name nobody do not."""
    monkeypatch.setenv("APL_GUARD_NAMES", str(minifaces.WEIGHTS))
    policy = Policy.load("anonymize_persons")
    detectors = Detectors(policy)

    def prefixed(texts: list[str]) -> int:
        requests = (GenerationRequest("t", {PROMPT: (text,)}, frozenset({PROMPT})) for text in texts)
        return sum(decide(policy, request, None, detectors.look(request)).prefixed for request in requests)

    named = [minifaces.identity_prompts(person, 1, seed=3, held_out=True)[0].text for person in minifaces.people()]
    nameless = [prompt.text for prompt in minifaces.generic_prompts(200, seed=3, held_out=True)]
    short = ["a red car", "a man", "a photo of a man", "a woman with glasses", "a picture of a yellow fish"]

    assert prefixed(named) == len(named)
    assert prefixed([person.name for person in minifaces.people()]) == 200
    assert prefixed(nameless) <= 2
    assert prefixed(short) == 0
