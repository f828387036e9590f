"""Training a prefix, from top to bottom.

    apl-guard train --model DIR --identities people.yaml --output prefixes/mine

The model is frozen. N vectors P in front of each prompt learn to make a prompt with a name act like the same
prompt with a neutral description in place of the name, and to leave every other prompt as it is.
`loss` has the equations. With `adversarial` steps, half of the named prompts are attacked first
(`adversary`), and the prefix learns to withstand that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from apl_guard.errors import TrainingFailed
from apl_guard.storage import make_folder
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.examples import Data, check_people, draw_batch, prepare
from apl_guard.trainer.data.identities import Identities, load_identities
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.model.pipeline import frozen, model_digest
from apl_guard.trainer.one_run import only_run
from apl_guard.trainer.train.adversary import Adversary
from apl_guard.trainer.train.checkpoint import State, forget, load_state, save_state
from apl_guard.trainer.train.history import History
from apl_guard.trainer.train.learner import Learner
from apl_guard.trainer.train.loss import apl_loss, distance
from apl_guard.trainer.train.measure import Gauge, Measurement
from apl_guard.trainer.train.result import TrainResult
from apl_guard.trainer.train.schedule import half_weights, lr_factor, share_done
from apl_guard.trainer.train.start import generic_prompts, open_to_learn, start_vectors
from apl_guard.trainer.train.stopping import stop_politely
from apl_guard.trainer.train.targets import Targets
from apl_guard.trainer.train.write import write_prefix


def train(
    config: TrainConfig,
    model: str | Path | Any,
    identities: str | Path | Identities,
    generic: str | Path | Sequence[str] | None,
    output: str | Path,
    *,
    restart: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train a prefix and write its folder. A run that was stopped or killed goes on where it was.

    Args:
        config: All options.
        model: A folder of a model in the format of diffusers, a hub id, `minifaces`, or an open pipe.
        identities: The identities file, or its content.
        generic: Prompts, a text file of them, a folder of images with captions, or None for built-in ones.
        output: The prefix folder to write. The state of an unfinished run is in its sub-folder `unfinished`.
        restart: Whether to throw the state of an unfinished run away.
        progress: Whether to draw progress bars.

    Raises:
        ModelInvalid, IdentitiesInvalid, ConfigInvalid, InvalidInput: What was handed over is wrong, or another run
            trains into the same folder.
        TrainingFailed: The loss is not a number.
        StorageFailed: Something could not be written. The last checkpoint stays.
        KeyboardInterrupt: Stopped by Ctrl-C or a termination signal, after a checkpoint was written.
    """
    people = identities if isinstance(identities, Identities) else load_identities(identities)
    check_people(people, config)
    prompts = generic_prompts(generic, model, config)
    output = Path(output)
    unfinished = output / "unfinished"
    pipe = open_to_learn(model, config)

    with only_run(output), frozen(pipe, config.gradient_checkpointing):
        if restart:
            forget(unfinished)
        make_folder(unfinished)  # here, for making the data may take hours
        data = prepare(pipe, config, people, prompts, progress)
        binding = {"config": config.model_dump(), "model": model_digest(pipe), "data": data.digest}

        # Where we are: at the start, or where an earlier run was stopped.
        state = load_state(unfinished, binding)
        if state is None:
            state = State.start(start_vectors(pipe, config), people=len(data.names))
        history = History(unfinished / "history.jsonl", keep_until=state.step)

        def save() -> None:
            history.flush()
            save_state(unfinished, state, binding)

        measurement = learn(pipe, config, data, state, history, save, progress)
        result = TrainResult(
            vectors=state.best.detach().cpu().float(),
            measurement=measurement,
            step=state.best_step,
            steps=state.step,
            seconds=state.seconds,
            folder=output,
        )
        write_prefix(pipe, config, data, result, history)
        forget(unfinished)
    return result


def learn(
    pipe: Any,
    config: TrainConfig,
    data: Data,
    state: State,
    history: History,
    save: Callable[[], None],
    progress: bool,
) -> Measurement:
    """Take the steps that are left, from where the state is, and leave in it the prefix to keep.

    Args:
        pipe: The model, frozen.
        config: All options.
        data: The examples.
        state: Where the run is; it changes.
        history: Is told what is seen.
        save: Writes state and history.
        progress: Whether to draw a progress bar.

    Returns:
        The evaluation of the prefix to keep.

    Raises:
        TrainingFailed: The loss is not a number.
        KeyboardInterrupt: Stopped by Ctrl-C or a termination signal, after the state was saved.
    """
    family = family_of(pipe, config)
    process, device, N = family.process, family.device, config.n_vectors
    learner = Learner(state, family.scales().to(device), config)
    targets = Targets(pipe, data, config, keep=config.reuse_batches > 0)
    gauge = Gauge(pipe, data, config)
    adversary = Adversary(pipe, data, config) if config.adversarial else None
    identity_ids = family.tokenize(data.identity.prompts, N)  # (M₁, S, L)
    generic_ids = family.tokenize(data.generic.prompts, N)  # (M₂, S, L)
    measured: Measurement | None = None
    bar = tqdm(total=config.steps, initial=state.step, desc="prefix", unit="step", disable=not progress)

    with stop_politely() as stop, bar:
        while True:
            began = time.monotonic()
            done = share_done(config, state)

            # Once in a while, and at the end: evaluate.
            if state.step % config.eval_every == 0 or done >= 1:
                measured = gauge(learner.mean)
                history.add(step=state.step, gap_closed=measured.gap_closed, generic_drift=measured.generic_drift)
                if measured.score > state.best_score or config.keep == "last":
                    state.best_score, state.best_step = measured.score, state.step
                    state.best = learner.mean.clone()

            # Once in a while, and before we leave: save the state.
            if state.step % config.checkpoint_every == 0 or done >= 1 or stop.is_set():
                learner.store(state)
                save()
            if done >= 1:
                break
            if stop.is_set():
                raise KeyboardInterrupt(f"stopped at step {state.step}; the same command goes on from here")

            # One step.
            index = state.step % config.reuse_batches if config.reuse_batches else state.step
            batch = draw_batch(data, config, index, process.levels, state.pick(data.identity.people, config))
            z_t, eps_neutral = targets(batch, index)  # (B, C, H, W) twice
            t = batch.t.to(device)  # (B,)
            ids = torch.cat([identity_ids[batch.identity], generic_ids[batch.generic]])  # (B, S, L)
            P = learner.P
            if adversary is not None:
                ids, P = adversary(ids, P, batch, z_t, t, state.step)
            eps = family.predict(z_t, t, family.embed(ids, P))  # (B, C, H, W)
            weight = half_weights(config, done).to(device) * process.weight(t, config.noise_weighting)  # (B,)
            loss = apl_loss(eps, eps_neutral, config.eta, weight)
            if not torch.isfinite(loss):
                raise TrainingFailed(
                    f"the loss is {loss.item()} at step {state.step}; expected a number. Lower lr ({config.lr:g}) or "
                    "set precision=float32, and start again with --restart"
                )
            learner.step(loss, config.lr * lr_factor(config, state.step, done))

            # What we saw.
            d = distance(eps.detach(), eps_neutral).cpu()  # (B,)
            d_identity, d_generic = d[: config.identity_batch], d[config.identity_batch :]
            state.saw(data.identity.people[batch.identity], d_identity)
            state.step += 1
            state.seconds += time.monotonic() - began
            history.add(step=state.step, identity=d_identity.mean().item(), generic=d_generic.mean().item())
            show(bar, config, state, history, measured)

    if config.keep == "best" and state.best_step != state.step:
        return gauge(state.best.to(device))
    assert measured is not None  # the loop evaluates before it ends
    return measured


def show(bar: Any, config: TrainConfig, state: State, history: History, measured: Measurement | None) -> None:
    """Move the progress bar: the last evaluation, for which 80 columns suffice, and both loss terms smoothed."""
    smooth = history.smooth
    text = f"identity {smooth['identity']:.4f} generic {smooth['generic']:.4f}"
    if measured is not None:
        text = f"gap closed {100 * measured.gap_closed:.0f} % drift {100 * measured.generic_drift:.1f} % {text}"
    if config.time_limit_minutes is not None:
        expected = math.ceil(state.step / max(share_done(config, state), 1e-6))
        bar.total = max(state.step, min(config.steps, expected))
    bar.set_postfix_str(text, refresh=False)
    bar.update(state.step - bar.n)
