"""The peers: each does what its paper's equations say, and leaves the user's pipe as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apl_guard import Guard
from apl_guard.adapters.inject import encode_prompts
from apl_guard.errors import ModelInvalid
from apl_guard.testing import random_prefix, tiny_pipe
from apl_guard.trainer.bench.learned import learn_once
from apl_guard.trainer.data.identities import Identities
from apl_guard.trainer.model.diffusion import add_noise, as_noise, from_noise
from apl_guard.trainer.model.pipeline import model_digest, predict
from apl_guard.trainer.peers.ablation import Ablation, ablation_loss
from apl_guard.trainer.peers.concept import FILE, concept_of, fitting
from apl_guard.trainer.peers.esd import ESD, esd_target
from apl_guard.trainer.peers.negative import NegativePrompt
from apl_guard.trainer.peers.peer import Files, Peer, Task
from apl_guard.trainer.peers.prefix import APL, Plain
from apl_guard.trainer.peers.samples import draw_latents, draw_stages
from apl_guard.trainer.peers.sld import SLD, Strength, safety_guidance
from apl_guard.trainer.peers.text_level import Block, Rewrite
from apl_guard.trainer.peers.uce import UCE, closed_form
from apl_guard.trainer.peers.weights import cross_attention, with_changes
from apl_guard.trainer.train.loss import distance

GENERIC = tuple(f"a photo of a {thing}" for thing in ("cat", "car", "boat", "tree"))
NAMED, UNNAMED = "a photo of Ada Lum", "a photo of a cat"
FAST_ESD = ESD(steps=2, batch=2, pictures=2, sampling_steps=2)
FAST_ABLATION = Ablation(steps=2, batch=2, pictures=2, sampling_steps=2)
FAST_UCE = UCE(templates=1, generic=2)


@pytest.fixture(name="task", scope="module")
def _task(people: Identities) -> Task:
    return Task(people, GENERIC)


@pytest.fixture(name="other", scope="module")
def _other(pipe: Any) -> Any:
    """A model with the same text encoder and another UNet, as a fine-tuned one is."""
    other = tiny_pipe()
    other.set_progress_bar_config(disable=True)
    with torch.no_grad():
        for parameter in other.unet.parameters():
            parameter.mul_(1.01)
    return other


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


@given(seed=st.integers(0, 10**6), n=st.integers(1, 6), m=st.integers(0, 6), keep=st.floats(0.01, 10))
@settings(max_examples=25)
def test_uce_is_the_least_squares_solution(seed: int, n: int, m: int, keep: float) -> None:
    """The closed form is what a solver of the written-out least-squares problem finds for W."""
    D, rng = 5, np.random.default_rng(seed)
    W_old, c, c_star, c_keep = (rng.normal(size=shape) for shape in ((4, D), (n, D), (n, D), (m, D)))
    lambda_ = 0.3
    # ‖W c − W_old c*‖², keep ‖W c_j − W_old c_j‖² and λ ‖W − W_old‖² as rows of one system for Wᵀ.
    rows = np.concatenate([c, np.sqrt(keep) * c_keep, np.sqrt(lambda_) * np.eye(D)])
    wanted = np.concatenate([c_star, np.sqrt(keep) * c_keep, np.sqrt(lambda_) * np.eye(D)]) @ W_old.T
    W = np.linalg.lstsq(rows, wanted, rcond=None)[0].T

    A = closed_form(*(torch.from_numpy(part) for part in (c, c_star, c_keep)), keep, lambda_)

    np.testing.assert_allclose(W_old @ A.numpy(), W, rtol=1e-6, atol=1e-8)


def test_uce_edits_every_projection_as_least_squares_would(pipe: Any, people: Identities) -> None:
    """Of one name: states from its last token on are sent where those of the neutral text went, in every layer."""
    task = Task(people.model_copy(update={"identities": people.identities[:1]}), GENERIC)
    peer = UCE(keep=0.0, rest=0.01, templates=0)
    edited = peer.apply(pipe, peer.learn(pipe, task, progress=False)).call
    both = encode_prompts(pipe.text_encoder, pipe.tokenizer, ["Ada Lum", "a man"]).detach().double().numpy()
    last, last_star = (len(pipe.tokenizer(text)["input_ids"]) - 2 for text in ("Ada Lum", "a man"))
    c, c_star = both[0, last:], both[1, last_star : last_star + both.shape[1] - last]
    pull = np.sqrt(0.01 * (c**2).sum() / c.shape[1]) * np.eye(c.shape[1])

    assert len(c) == len(c_star)
    for name, old in cross_attention(pipe.unet, keys_and_values=True).items():
        W_old = old.detach().double().numpy()
        rows, wanted = np.concatenate([c, pull]), np.concatenate([c_star, pull]) @ W_old.T
        W = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
        found = cross_attention(edited.unet, keys_and_values=True)[name].detach().numpy()
        np.testing.assert_allclose(found, W, atol=2e-3 * np.abs(W).max())


@given(seed=st.integers(0, 10**6), eta=st.floats(0, 3))
@settings(max_examples=25)
def test_the_target_of_esd_is_the_bracket_of_its_equation(seed: int, eta: float) -> None:
    """It is ε(x) − η (ε(x, c) − ε(x)); for velocities it is the velocity of that."""
    rng = np.random.default_rng(seed)
    eps, eps_c, x_t = rng.normal(size=(3, 2, 1, 2, 2))
    alpha = rng.uniform(0.05, 0.95)
    literal = np.array([e - eta * (ec - e) for e, ec in zip(eps.ravel(), eps_c.ravel(), strict=True)])

    def velocity(noise: Any) -> Any:
        x_0 = (x_t - np.sqrt(1 - alpha) * noise) / np.sqrt(alpha)
        return np.sqrt(alpha) * noise - np.sqrt(1 - alpha) * x_0

    target = esd_target(torch.from_numpy(eps), torch.from_numpy(eps_c), eta).numpy()
    of_velocities = esd_target(torch.from_numpy(velocity(eps)), torch.from_numpy(velocity(eps_c)), eta).numpy()

    np.testing.assert_allclose(target.ravel(), literal, atol=1e-12)
    np.testing.assert_allclose(of_velocities, velocity(target), atol=1e-9)


def test_esd_learns_what_its_equation_says(pipe: Any, task: Task) -> None:
    """After learning, the answers to named prompts are nearer to the bracket of (7) than the frozen model's."""
    peer = ESD(steps=20, batch=4, pictures=4, sampling_steps=2, lr=3e-3)
    edited = peer.apply(pipe, peer.learn(pipe, task, progress=False)).call
    prompts = [f"a photo of {name}" for name in list(task.names)[:4]]
    x, t = draw_stages(pipe, prompts, 2, 3.0, seed=5, progress=False)
    c, nothing = (encode_prompts(pipe.text_encoder, pipe.tokenizer, texts) for texts in (prompts, [""] * 4))
    with torch.no_grad():
        eps, eps_c, learned = (
            predict(unet, x[:, 1], t[1].expand(4), cond, torch.float32)
            for unet, cond in ((pipe.unet, nothing), (pipe.unet, c), (edited.unet, c))
        )
    target = esd_target(eps, eps_c, peer.eta)

    assert distance(learned, target).mean() < 0.8 * distance(eps_c, target).mean()


def test_stages_are_those_of_the_pipe(pipe: Any) -> None:
    """Going on from a stage with the pipe's own scheduler gives the next stage, and after the last the picture."""
    x, t = draw_stages(pipe, [NAMED], 3, 1.0, seed=0, progress=False)
    whole = pipe([NAMED], latents=x[:, 0], num_inference_steps=3, guidance_scale=1.0, output_type="latent").images
    c = encode_prompts(pipe.text_encoder, pipe.tokenizer, [NAMED])
    pipe.scheduler.set_timesteps(3)
    with torch.no_grad():
        following = [
            pipe.scheduler.step(pipe.unet(x[:, k], t[k], c).sample, t[k], x[:, k]).prev_sample for k in range(3)
        ]

    assert torch.equal(t, pipe.scheduler.timesteps)
    for k in (0, 1):
        torch.testing.assert_close(following[k], x[:, k + 1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(following[2], whole, rtol=1e-4, atol=1e-4)


def test_the_loss_of_ablation_is_its_equation() -> None:
    """Written out number by number it is the same, and the anchor's answer learns from the second term alone."""
    rng = torch.Generator().manual_seed(0)
    name, anchor, truth = (torch.randn((2, 1, 2, 2), generator=rng).requires_grad_() for _ in range(3))
    pairs = list(zip(name.flatten().tolist(), anchor.flatten().tolist(), truth.flatten().tolist(), strict=True))
    literal = sum((a - n) ** 2 + 0.7 * (v - a) ** 2 for n, a, v in pairs) / len(pairs)

    loss = ablation_loss(name, anchor, truth, lambda_=0.7)
    loss.backward()  # type: ignore[no-untyped-call]

    assert loss.item() == pytest.approx(literal, rel=1e-5)
    torch.testing.assert_close(anchor.grad, 2 * 0.7 * (anchor - truth).detach() / anchor.numel())


def test_ablation_brings_a_name_to_its_neutral_text(pipe: Any, people: Identities) -> None:
    """After learning, the answer to a name is nearer to the frozen model's answer to the neutral text."""
    one = people.model_copy(update={"identities": people.identities[:1], "templates": ("{name}",)})
    peer = Ablation(steps=40, batch=4, pictures=2, sampling_steps=2, lr=1e-4, lambda_=0.0)
    edited = peer.apply(pipe, peer.learn(pipe, Task(one, GENERIC), progress=False)).call
    z = draw_latents(pipe, ["a man"] * 4, 2, 3.0, seed=1, progress=False)
    t, noise = torch.full((4,), 500), torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    x_t = add_noise(pipe.scheduler.alphas_cumprod, z, noise, t)
    texts = ["Ada Lum"] * 4, ["a man"] * 4
    c_star, c = (encode_prompts(pipe.text_encoder, pipe.tokenizer, part) for part in texts)
    with torch.no_grad():
        before, wanted, after = (
            predict(unet, x_t, t, cond, torch.float32)
            for unet, cond in ((pipe.unet, c_star), (pipe.unet, c), (edited.unet, c_star))
        )

    assert distance(after, wanted).mean() < 0.7 * distance(before, wanted).mean()


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


def test_noise_and_velocity_are_turned_into_each_other(pipe: Any) -> None:
    """What is made of a velocity is the noise that diffusers made the velocity of, and back."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")
    z, eps, t = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2), torch.tensor(300)
    z_t = scheduler.add_noise(z, eps, t[None])
    velocity = scheduler.get_velocity(z, eps, t[None])

    torch.testing.assert_close(as_noise(scheduler, velocity, z_t, t), eps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(from_noise(scheduler, eps, z_t, t), velocity, rtol=1e-4, atol=1e-5)


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


def test_changes_are_added_to_another_model(pipe: Any, other: Any, task: Task) -> None:
    """What was learned on one model is put on a fine-tuned one as a difference of weights, and on no other layer."""
    files = FAST_UCE.learn(pipe, task)
    mine, theirs = with_changes(pipe, files).unet.state_dict(), with_changes(other, files).unet.state_dict()
    before, theirs_before = pipe.unet.state_dict(), other.unet.state_dict()
    changed = {name for name in mine if not torch.equal(mine[name], before[name])}

    assert changed == set(cross_attention(pipe.unet, keys_and_values=True))
    for name in mine:
        torch.testing.assert_close(theirs[name] - theirs_before[name], mine[name] - before[name], rtol=1e-3, atol=1e-5)


def test_changes_of_another_kind_of_model_are_refused(pipe: Any, task: Task) -> None:
    """The message says what was found and what this model has."""
    from small_model import small_pipe

    with pytest.raises(ModelInvalid, match=r"changes for .* this model has"):
        with_changes(small_pipe(shallow=True), FAST_UCE.learn(pipe, task))


class Counting:
    """A peer that counts how often it learns."""

    key, source = "counting", ""

    def __init__(self, **options: Any) -> None:
        self.settings, self.times = options, 0

    def learn(self, pipe: Any, task: Task, progress: bool = True) -> Files:
        self.times += 1
        return {"a.bin": bytes(1000), "b.bin": str(sorted(self.settings.items())).encode()}

    def apply(self, pipe: Any, files: Files) -> Any:
        raise NotImplementedError


def test_a_peer_learns_once(pipe: Any, task: Task, tmp_path: Path) -> None:
    """The same again is read; other options, another task or a damaged file are learned anew."""
    peer, other_options = Counting(), Counting(lr=2)
    first = learn_once(peer, pipe, task, tmp_path)
    again = learn_once(peer, pipe, task, tmp_path)

    assert (peer.times, again) == (1, first)
    assert first.shipped == sum(len(content) for content in first.files.values())
    learn_once(other_options, pipe, task, tmp_path)
    assert other_options.times == 1
    learn_once(peer, pipe, task, tmp_path)
    assert peer.times == 2
    learn_once(peer, pipe, Task(task.people, GENERIC[:2]), tmp_path)
    assert peer.times == 3
    (tmp_path / "counting" / "a.bin").write_bytes(b"damaged")
    learn_once(peer, pipe, Task(task.people, GENERIC[:2]), tmp_path)
    assert peer.times == 4
