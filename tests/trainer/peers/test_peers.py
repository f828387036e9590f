"""The peers: each leaves the user's pipe as it was, and those that change prompt or guidance do what they say."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apl_guard import Guard
from apl_guard.testing import random_prefix
from apl_guard.trainer.data.identities import Identities
from apl_guard.trainer.model.pipeline import model_digest
from apl_guard.trainer.peers.ablation import Ablation
from apl_guard.trainer.peers.concept import FILE, concept_of, fitting
from apl_guard.trainer.peers.esd import ESD
from apl_guard.trainer.peers.negative import NegativePrompt
from apl_guard.trainer.peers.peer import Peer, Task
from apl_guard.trainer.peers.prefix import APL, Plain
from apl_guard.trainer.peers.sld import SLD, Strength, safety_guidance
from apl_guard.trainer.peers.text_level import Block, Rewrite
from apl_guard.trainer.peers.uce import UCE

GENERIC = tuple(f"a photo of a {thing}" for thing in ("cat", "car", "boat", "tree"))
NAMED, UNNAMED = "a photo of Ada Lum", "a photo of a cat"
FAST_ESD = ESD(steps=2, batch=2, pictures=2, sampling_steps=2)
FAST_ABLATION = Ablation(steps=2, batch=2, pictures=2, sampling_steps=2)
FAST_UCE = UCE(templates=1, generic=2)


@pytest.fixture(name="task", scope="module")
def _task(people: Identities) -> Task:
    return Task(people, GENERIC)


def peers(pipe: Any) -> list[Peer]:
    prefix = random_prefix(pipe, n=3)
    return [
        Plain(), Block(), Rewrite(), NegativePrompt("list"), NegativePrompt("named"), SLD("list"), SLD("named"),
        FAST_UCE, FAST_ESD, FAST_ABLATION, APL(prefix, "listed"), APL(prefix),
    ]  # fmt: skip


def picture(call: Any, *texts: str, guidance: float = 3.0) -> Any:
    generators = [torch.Generator().manual_seed(k) for k in range(len(texts))]
    return call(
        list(texts), num_inference_steps=3, guidance_scale=guidance, generator=generators, output_type="np"
    ).images


@pytest.mark.parametrize("number", range(12))
def test_a_peer_leaves_the_pipe_as_it_was(pipe: Any, task: Task, number: int) -> None:
    """Weights, schedule, attention code, gradients and pictures are the same after learning, applying and drawing."""
    peer = peers(pipe)[number]
    processors = dict(pipe.unet.attn_processors)
    wants_gradient = [p.requires_grad for p in pipe.unet.parameters()]
    before = model_digest(pipe), picture(pipe, NAMED)

    applied = peer.apply(pipe, peer.learn(pipe, task, progress=False))
    drawn = picture(applied.call, NAMED, UNNAMED)

    assert drawn.shape == (2, 32, 32, 3)
    assert np.isfinite(drawn).all()
    assert model_digest(pipe) == before[0]
    assert np.array_equal(picture(pipe, NAMED), before[1])
    assert pipe.unet.attn_processors == processors
    assert [p.requires_grad for p in pipe.unet.parameters()] == wants_gradient


@given(
    seed=st.integers(0, 10**6),
    how=st.builds(
        Strength, s_S=st.floats(0, 5), lambda_=st.floats(-0.5, 1), s_m=st.floats(0, 1), beta_m=st.floats(0, 1)
    ),
)
@settings(max_examples=25)
def test_safety_guidance_is_equations_5_to_8(seed: int, how: Strength) -> None:
    """Three steps of it, element by element, are what the equations say, momentum included."""
    rng = np.random.default_rng(seed)
    nu = torch.zeros(6, dtype=torch.float64)
    by_hand = [0.0] * 6
    for _ in range(3):
        eps, eps_p, eps_s = rng.normal(size=(3, 6))
        gamma, nu = safety_guidance(*(torch.from_numpy(part) for part in (eps, eps_p, eps_s)), nu, how)
        for k in range(6):
            phi = how.s_S * (eps_p[k] - eps_s[k])
            mu = min(1.0, abs(phi)) if eps_p[k] - eps_s[k] < how.lambda_ else 0.0
            wanted = mu * (eps_s[k] - eps[k]) + how.s_m * by_hand[k]
            assert gamma[k].item() == pytest.approx(wanted, abs=1e-9)
            by_hand[k] = how.beta_m * by_hand[k] + (1 - how.beta_m) * wanted
        assert nu.tolist() == pytest.approx(by_hand, abs=1e-9)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_sld_without_its_guidance_is_the_pipe(pipe: Any, task: Task, prediction_type: str) -> None:
    """A prompt that names nobody on the list is drawn as the pipe draws it, whatever it predicts; a name is not."""
    own = copy.deepcopy(pipe)
    own.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=prediction_type)
    applied = SLD("named").apply(own, SLD("named").learn(own, task, progress=False))

    drawn, plain = picture(applied.call, NAMED, UNNAMED), picture(own, NAMED, UNNAMED)

    named, unnamed = np.abs(drawn - plain).reshape(2, -1).max(1)
    assert unnamed < 2e-4 < 1e-3 < named


def test_negative_prompts_are_the_pipes_own(pipe: Any, task: Task) -> None:
    """The list is the pipe's argument as it is, and a prompt that holds no listed name is drawn as ever."""
    whole, named = (
        NegativePrompt(scope).apply(pipe, NegativePrompt(scope).learn(pipe, task)).call for scope in ("list", "named")
    )
    text = concept_of(NegativePrompt("list").learn(pipe, task))(UNNAMED)
    by_hand = pipe(
        [NAMED], negative_prompt=[text], num_inference_steps=3, guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(0)], output_type="np",
    ).images  # fmt: skip

    assert np.array_equal(picture(whole, NAMED), by_hand)
    assert np.array_equal(picture(named, UNNAMED), picture(pipe, UNNAMED))
    assert not np.array_equal(picture(named, NAMED), picture(pipe, NAMED))


def test_a_list_is_cut_where_a_prompt_ends(pipe: Any) -> None:
    """What is kept fits the tokenizer's row, and one name more does not."""
    names = [f"Person Number{k}" for k in range(200)]
    kept = fitting(pipe.tokenizer, names)

    assert 0 < len(kept) < 200
    assert len(pipe.tokenizer(", ".join(kept))["input_ids"]) <= pipe.tokenizer.model_max_length
    assert len(pipe.tokenizer(", ".join(names[: len(kept) + 1]))["input_ids"]) > pipe.tokenizer.model_max_length


def test_a_name_in_other_words_is_no_concept() -> None:
    """Names count as whole words only."""
    concept = concept_of({FILE: b'{"scope": "named", "names": ["Bo Tarn"]}'})

    assert concept("a photo of Bo Tarnish") == ""


def test_the_text_level_does_what_its_policies_say(pipe: Any, task: Task) -> None:
    """A blocked prompt is black beside one that is drawn; a rewritten one is drawn as the neutral prompt."""
    block, rewrite = (peer.apply(pipe, peer.learn(pipe, task)) for peer in (Block(), Rewrite()))

    drawn = picture(block.call, NAMED, UNNAMED)

    assert [block.refuses(text) for text in (NAMED, UNNAMED)] == [True, False]
    assert not drawn[0].any()
    assert np.array_equal(
        drawn[1:], pipe([UNNAMED], num_inference_steps=3, guidance_scale=3.0, output_type="np",
                        generator=[torch.Generator().manual_seed(1)]).images,
    )  # fmt: skip
    assert np.array_equal(picture(rewrite.call, NAMED), picture(pipe, "a photo of a man"))
    assert not rewrite.refuses(NAMED)


def test_the_prefix_is_the_guards(pipe: Any, task: Task) -> None:
    """Always on it is the guard; listed it is the guard for listed names and the bare pipe for all else."""
    prefix = random_prefix(pipe, n=3)
    always, listed = (peer.apply(pipe, peer.learn(pipe, task)).call for peer in (APL(prefix), APL(prefix, "listed")))
    guard = Guard(pipe, prefix=prefix)

    for text, gated in ((NAMED, guard), (UNNAMED, pipe)):
        assert np.array_equal(picture(always, text), picture(guard, text))
        assert np.array_equal(picture(listed, text), picture(gated, text))
