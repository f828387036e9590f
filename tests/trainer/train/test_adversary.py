"""Training with attacks in the loop: the attack attacks, and the prefix learns against it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from names_and_prompts import GENERIC

from apl_guard.testing import tiny_pipe
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.examples import draw_batch, prepare
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.model.pipeline import frozen
from apl_guard.trainer.model.prompt_embeds import PromptEmbeds
from apl_guard.trainer.model.unets import predict
from apl_guard.trainer.train.adversary import VECTORS, Adversary, attacked
from apl_guard.trainer.train.loss import distance
from apl_guard.trainer.train.plan import make_plan
from apl_guard.trainer.train.rows import insert_vectors, sentinels
from apl_guard.trainer.train.start import start_vectors
from apl_guard.trainer.train.targets import Targets

CONFIG = TrainConfig(
    n_vectors=3, steps=3, identity_batch=4, generic_batch=2, images_per_identity=1, generic_count=4, sampling_steps=1,
    sampling_batch=8, held_aside_identities=2, held_aside_generic=2, eval_every=3, checkpoint_every=1, warmup_steps=0,
    lr=1e-2, adversarial=4, precision="float32",
)  # fmt: skip


@pytest.fixture(name="attack", params=["stable_diffusion", "stable_diffusion_xl"])
def _attack(request, people):
    """The attack on a prefix that has learned nothing, with the batch that it was made on."""
    pipe = tiny_pipe(family=request.param)
    pipe.set_progress_bar_config(disable=True)
    model = family_of(pipe)
    with frozen(pipe):
        data = prepare(pipe, CONFIG, people, GENERIC, progress=False)
        batch = draw_batch(data, CONFIG, 0, len(pipe.scheduler.alphas_cumprod))
        z_t, _ = Targets(pipe, data, CONFIG, keep=False)(batch, 0)
        P = start_vectors(pipe, CONFIG).requires_grad_(True)
        identity = model.tokenize(data.identity.prompts, len(P))[batch.identity]
        generic = model.tokenize(data.generic.prompts, len(P))[batch.generic]
        ids = torch.cat([identity, generic])

        def make(steps: int, index: int = 0, identity: torch.Tensor = batch.identity):
            adversary = Adversary(pipe, data, CONFIG.model_copy(update={"adversarial": steps}))
            return adversary(ids, P, replace(batch, identity=identity), z_t, batch.t, index)

        names = [data.identity.prompts[k] for k in batch.identity.tolist()]
        yield pipe, P, ids, batch, z_t, PromptEmbeds(pipe, names)(names), make


def test_more_steps_bring_the_answer_nearer_to_the_name(attack):
    """The distance to what the bare model answers falls, so the attack attacks."""
    pipe, _, _, batch, z_t, named, make = attack
    B = attacked(CONFIG)
    distances = []
    for steps in (1, 4, 12):
        rows, vectors = make(steps)
        with torch.no_grad():
            eps = predict(pipe.unet, z_t[:B], batch.t[:B], family_of(pipe).embed(rows[:B], vectors))
            wanted = predict(pipe.unet, z_t[:B], batch.t[:B], named[:B])
        distances.append(distance(eps, wanted).mean().item())
    assert distances[0] > distances[1] > distances[2]


def test_the_attack_aims_at_the_names_of_its_own_half(attack):
    """Other names in the other half change nothing, and in its own they do."""
    _, _, _, batch, _, _, make = attack
    ours, theirs = batch.identity[: attacked(CONFIG)], batch.identity[attacked(CONFIG) :]
    vectors = make(2)[1]

    assert torch.equal(make(2, identity=torch.cat([ours, ours]))[1], vectors)
    assert not torch.equal(make(2, identity=torch.cat([theirs, theirs]))[1], vectors)


def test_only_half_of_the_named_prompts_are_attacked(attack):
    """Behind the prefix, with everything else of the row moved on; the other rows stay as they are."""
    _, P, ids, _, _, _, make = attack
    rows, vectors = make(1)
    B = attacked(CONFIG)
    assert (B, rows.shape, len(vectors)) == (2, ids.shape, len(P) + B * VECTORS)
    assert attacked(CONFIG.model_copy(update={"identity_batch": 1})) == 1, "one alone is attacked as well"
    assert torch.equal(rows[B:], ids[B:])
    for number, of_encoders in enumerate(rows[:B].tolist()):
        first = len(P) + 1 + number * VECTORS
        for slot, row in enumerate(of_encoders):
            assert row[1 : 1 + len(P)] == [-1, -2, -3]
            assert row[1 + len(P) :][:VECTORS] == [-(first + k) for k in range(VECTORS)]
            assert row[1 + len(P) + VECTORS :] == ids[number, slot, 1 + len(P) : -VECTORS].tolist()


def test_the_prefix_learns_and_the_attack_does_not(attack):
    """Gradients reach the prefix alone, and equal steps make equal attacks, so that a resumed run is the same."""
    pipe, P, _, batch, z_t, _, make = attack
    rows, vectors = make(2)
    loss = predict(pipe.unet, z_t, batch.t, family_of(pipe).embed(rows, vectors)).pow(2).mean()
    torch.autograd.backward(loss)
    assert P.grad is not None
    assert P.grad.abs().sum() > 0
    assert torch.equal(make(2)[1], vectors)
    assert not torch.equal(make(2, index=1)[1], vectors)


def test_a_full_row_keeps_its_end():
    """What does not fit is cut before the end token."""
    ids = torch.tensor([[0, 5, 6, 7, 9], [0, 5, 9, 9, 9]])
    assert insert_vectors(ids, 1, sentinels(2, 0, 2), end=9).tolist() == [[0, -1, -2, 5, 9], [0, -3, -4, 5, 9]]


def test_the_plan_counts_the_attack(pipe, people, monkeypatch):
    """Four steps and a target for two of six examples, where a pass takes a second."""
    monkeypatch.setattr("apl_guard.trainer.train.plan._time", lambda work: 1.0)
    plain = make_plan(CONFIG.model_copy(update={"adversarial": 0}), pipe, people, GENERIC)
    hardened = make_plan(CONFIG, pipe, people, GENERIC)
    assert plain.seconds_steps == CONFIG.steps
    assert hardened.seconds_steps == pytest.approx(CONFIG.steps * (1 + 5 * 2 / 6))
