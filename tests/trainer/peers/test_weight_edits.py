"""The peers that change weights: UCE, ESD and ablation do what the equations of their papers say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apl_guard.adapters.inject import encode_prompts
from apl_guard.errors import ModelInvalid
from apl_guard.testing import tiny_pipe
from apl_guard.trainer.data.identities import Identities
from apl_guard.trainer.model.diffusion import process_of
from apl_guard.trainer.model.unets import predict
from apl_guard.trainer.peers.ablation import Ablation, ablation_loss
from apl_guard.trainer.peers.esd import ESD, esd_target
from apl_guard.trainer.peers.peer import Task
from apl_guard.trainer.peers.samples import draw_latents, draw_stages
from apl_guard.trainer.peers.uce import UCE, closed_form
from apl_guard.trainer.peers.weights import cross_attention, with_changes
from apl_guard.trainer.train.loss import distance

GENERIC = tuple(f"a photo of a {thing}" for thing in ("cat", "car", "boat", "tree"))
NAMED = "a photo of Ada Lum"
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
            predict(unet, x[:, 1], t[1].expand(4), cond)
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
    x_t = process_of(pipe.scheduler).noised(z, noise, t)
    texts = ["Ada Lum"] * 4, ["a man"] * 4
    c_star, c = (encode_prompts(pipe.text_encoder, pipe.tokenizer, part) for part in texts)
    with torch.no_grad():
        before, wanted, after = (
            predict(unet, x_t, t, cond) for unet, cond in ((pipe.unet, c_star), (pipe.unet, c), (edited.unet, c_star))
        )

    assert distance(after, wanted).mean() < 0.7 * distance(before, wanted).mean()


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
