"""Training runs: what they change and what not, stopping and going on, and that each option counts."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from names_and_prompts import GENERIC
from run_training import run_to
from safetensors.torch import load_file
from small_model import small_pipe
from tqdm import tqdm

from apl_guard.encoder.fingerprint import fingerprint
from apl_guard.errors import InvalidInput, StorageFailed, TrainingFailed
from apl_guard.prefix import Prefix
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.identities import Identities
from apl_guard.trainer.train import TrainResult, train
from apl_guard.trainer.train.checkpoint import State
from apl_guard.trainer.train.history import History
from apl_guard.trainer.train.measure import Measurement
from apl_guard.trainer.train.run import show
from apl_guard.trainer.train.start import start_vectors


def weights_of(pipe: Any) -> str:
    digest = hashlib.sha256()
    for part in (pipe.text_encoder, pipe.unet, pipe.vae):
        for name, tensor in part.state_dict().items():
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def run(pipe: Any, people: Identities, config: TrainConfig, output: Path) -> TrainResult:
    return train(config, pipe, people, GENERIC, output, progress=False)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_two_steps_change_the_prefix_and_no_weight(
    prediction_type: str, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """On the true layout of Stable Diffusion 1.5 the prefix learns, and the model stays as it is."""
    pipe = small_pipe(prediction_type)
    before, processors = weights_of(pipe), dict(pipe.unet.attn_processors)
    two = config.model_copy(update={"steps": 2, "keep": "last"})

    result = run(pipe, people, two, tmp_path / "prefix")

    assert weights_of(pipe) == before
    assert all(p.requires_grad and p.grad is None for p in pipe.unet.parameters())
    assert pipe.unet.attn_processors == processors
    assert result.step == result.steps == 2
    assert not torch.equal(result.vectors, start_vectors(pipe, two))


def test_the_folder_holds_all_that_was_promised(
    pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """The prefix is bound to the encoder, the options load again, history, card and pictures are there."""
    result = run(pipe, people, config, tmp_path / "mine")

    prefix = Prefix.load(result.folder)
    assert torch.equal(prefix.vectors["text_encoder"], result.vectors)
    assert prefix.metadata.fingerprints == {"text_encoder": fingerprint(pipe.text_encoder, pipe.tokenizer)}
    assert prefix.metadata.evaluation["gap_closed"] == pytest.approx(result.measurement.gap_closed)
    assert TrainConfig.load(result.folder / "config.yaml") == config
    assert prefix.metadata.config_digest == config.digest
    history = [json.loads(line) for line in (result.folder / "history.jsonl").read_text().splitlines()]
    assert [e["step"] for e in history if "identity" in e] == [1, 2, 3, 4]
    assert [e["step"] for e in history if "gap_closed" in e] == [0, 2, 4]
    card = (result.folder / "card.md").read_text()
    assert "before_and_after.png" in card
    held = min(config.held_aside_identities, len(people.identities) // 4)
    assert held
    assert f"on {held} people that it was not trained on" in card
    assert f"\n{len(people.identities) - held} people, 4 steps" in card
    assert sorted(p.name for p in result.folder.iterdir()) == [
        "before_and_after.png", "card.md", "config.yaml", "history.jsonl", "prefix.safetensors",
    ]  # fmt: skip


def test_training_closes_the_gap(pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path) -> None:
    """Forty steps bring the model's answer to a name nearer to its answer to the neutral prompt."""
    strong = {"lr": 4e-2, "identity_weight": 3.0, "generic_weight": 1.0, "generic_weight_end": 1.0}
    few = {"steps": 40, "identity_batch": 8, "eval_every": 40, "keep": "last"}
    longer = config.model_copy(update=strong | few)

    result = run(pipe, people, longer, tmp_path / "prefix")

    entries = [json.loads(line) for line in (result.folder / "history.jsonl").read_text().splitlines()]
    gaps = [entry["gap_closed"] for entry in entries if "gap_closed" in entry]
    assert gaps[-1] > gaps[0] + 0.2


CHANGES: dict[str, dict[str, Any]] = {
    "n_vectors": {"n_vectors": 4},
    "init": {"init": "noise"},
    "start_words": {"start_words": "not the real person"},
    "neutral": {"neutral": "attributes"},
    "attributes_share": {"attributes_share": 0.5},
    "identity_weight": {"identity_weight": 0.1},
    "identity_weight_end": {"identity_weight_end": 0.0},
    "generic_weight": {"generic_weight": 9.0},
    "generic_weight_end": {"generic_weight_end": 90.0},
    "eta": {"eta": 1e-7 - 1e-9, "identity_weight": 1e-6, "generic_weight": 0.0},
    "noise_weighting": {"noise_weighting": "min_snr"},
    "timestep_low": {"timestep_low": 0.9},
    "timestep_high": {"timestep_high": 0.1},
    "steps": {"steps": 3},
    "identity_batch": {"identity_batch": 3},
    "generic_batch": {"generic_batch": 3},
    "lr": {"lr": 1e-3},
    "schedule": {"schedule": "constant"},
    "warmup_steps": {"warmup_steps": 4},
    "ema_decay": {"ema_decay": 0.9},
    "hard_identities": {"hard_identities": 3.0},
    "adversarial": {"adversarial": 1},
    "reuse_batches": {"reuse_batches": 1},
    "seed": {"seed": 1},
    "images_per_identity": {"images_per_identity": 3},
    "identity_images": {"identity_images": "neutral"},
    "generic_count": {"generic_count": 2},
    "sampling_steps": {"sampling_steps": 3},
    "guidance_scale": {"guidance_scale": 1.0},
    "picture_size": {"picture_size": 16},
    "sampling_batch": {"sampling_batch": 5},
    "held_aside_identities": {"held_aside_identities": 0},
    "held_aside_generic": {"held_aside_generic": 2},
    "precision": {"precision": "bfloat16"},
}
ELSEWHERE = {
    "device",
    "eval_every",
    "checkpoint_every",
    "keep",
    "time_limit_minutes",
    "gradient_checkpointing",
    "max_sequence_length",  # of other models: test_train_flow.py
}


def test_every_option_is_tested() -> None:
    """No option can be added without a test that it counts."""
    assert CHANGES.keys() | ELSEWHERE == TrainConfig.model_fields.keys()


@pytest.fixture(name="reference", scope="module")
def _reference(pipe: Any, people: Identities, config: TrainConfig, tmp_path_factory: Any) -> torch.Tensor:
    os.environ.setdefault("APL_GUARD_CACHE", str(tmp_path_factory.mktemp("cache")))
    last = config.model_copy(update={"keep": "last"})
    return run(pipe, people, last, tmp_path_factory.mktemp("reference") / "prefix").vectors


@pytest.mark.parametrize("option", CHANGES)
def test_an_option_changes_the_prefix(
    option: str, reference: torch.Tensor, pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """Another value of the option gives another prefix."""
    changed = TrainConfig.from_mapping({**config.model_dump(), "keep": "last", **CHANGES[option]})

    vectors = run(pipe, people, changed, tmp_path / "prefix").vectors

    assert vectors.shape != reference.shape or not torch.equal(vectors, reference)


def test_equal_options_give_equal_prefixes(
    reference: torch.Tensor, pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """A second run gives the same prefix, bit for bit; how often it is evaluated or saved does not matter."""
    other = config.model_copy(update={"keep": "last", "eval_every": 1, "checkpoint_every": 3})

    assert torch.equal(run(pipe, people, other, tmp_path / "prefix").vectors, reference)


def test_the_best_prefix_is_kept(pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path) -> None:
    """When two steps made the prefix worse, that of the best evaluation is written and not the last one."""
    wild = config.model_copy(update={"lr": 3.0, "steps": 2, "eval_every": 1, "generic_weight": 0.0})

    best = run(pipe, people, wild, tmp_path / "best")
    last = run(pipe, people, wild.model_copy(update={"keep": "last"}), tmp_path / "last")

    lines = (best.folder / "history.jsonl").read_text().splitlines()
    entries = [entry for entry in map(json.loads, lines) if "gap_closed" in entry]
    scores = {entry["step"]: entry["gap_closed"] - entry["generic_drift"] for entry in entries}
    assert best.step == max(scores, key=lambda step: scores[step]) < 2 == last.step
    assert best.measurement.score == pytest.approx(scores[best.step])
    assert last.measurement.score == pytest.approx(scores[2])


def test_a_time_limit_ends_the_run(pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path) -> None:
    """A run with far too many steps ends when its time is up, and still writes a prefix."""
    short = config.model_copy(update={"steps": 100_000, "time_limit_minutes": 0.02, "eval_every": 1000})

    result = run(pipe, people, short, tmp_path / "prefix")

    assert result.steps < 1000
    assert Prefix.load(result.folder).n == 3


def test_gradient_checkpointing_computes_blocks_again(
    pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """With it a block of the UNet starts once more in each step, and the prefix is the same."""
    calls: list[int] = []
    hook = pipe.unet.mid_block.resnets[1].register_forward_pre_hook(lambda *_: calls.append(1))
    results = []
    for k, on in enumerate((False, True)):
        calls.clear()
        changed = config.model_copy(update={"gradient_checkpointing": on, "keep": "last"})
        vectors = run(pipe, people, changed, tmp_path / f"prefix{k}").vectors
        results.append((len(calls), vectors))
    hook.remove()

    assert results[1][0] == results[0][0] + config.steps
    torch.testing.assert_close(results[1][1], results[0][1])


@pytest.fixture(name="one_thread")
def _one_thread() -> Iterator[None]:
    """Sums of several threads may differ in their last bits from those of one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_killed_run_goes_on_to_the_same_bits(one_thread: None, tmp_path: Path) -> None:
    """A run killed, started again, stopped by Ctrl-C and started again ends as one that was never stopped.

    What is killed is a process of its own; the others need none.
    """
    program = [sys.executable, str(Path(__file__).parents[1] / "run_training.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    run_to(whole)
    for step, number, code in ((4, signal.SIGKILL, -signal.SIGKILL), (8, signal.SIGINT, 130)):
        process = subprocess.Popen([*program, str(killed)], env=environment)
        wait_for_step(killed / "unfinished" / "checkpoint.safetensors", step, process)
        process.send_signal(number)
        assert process.wait(timeout=120) == code
        assert not (killed / "prefix.safetensors").exists()
    run_to(killed)

    vectors = [load_file(folder / "prefix.safetensors")["text_encoder"] for folder in (whole, killed)]
    assert torch.equal(vectors[0], vectors[1])
    assert (whole / "history.jsonl").read_text() == (killed / "history.jsonl").read_text()
    assert not (killed / "unfinished").exists()


def wait_for_step(checkpoint: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a run has saved its state at a step."""
    deadline = time.monotonic() + 300
    while not checkpoint.exists() or f'\\"step\\": {step}'.encode() not in checkpoint.read_bytes()[:5000]:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


class StopError(Exception):
    """Ends a run in the middle."""


def stopped_run(pipe: Any, people: Identities, config: TrainConfig, output: Path) -> None:
    """Leave an unfinished run behind."""
    calls: list[int] = []

    def stop(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise StopError

    from apl_guard.trainer.train import run as module

    original = module.lr_factor
    module.lr_factor = lambda *a: (stop(), original(*a))[1]
    try:
        with pytest.raises(StopError):
            run(pipe, people, config, output)
    finally:
        module.lr_factor = original


def test_a_run_that_is_killed_while_its_state_is_thrown_away_keeps_its_history(
    pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when a part of it is gone, and started again, it ends with the history of every step."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(pipe, people, config, whole)

    def half_done(folder: Path, **_: Any) -> None:
        (folder / "history.jsonl").unlink()
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half_done)
        with pytest.raises(StopError):
            run(pipe, people, config, killed)
    run(pipe, people, config, killed)

    assert (killed / "history.jsonl").read_text() == (whole / "history.jsonl").read_text()


def test_the_history_of_a_stopped_run_is_not_lost_where_it_cannot_be_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk, or where the run is killed at that moment."""
    path = tmp_path / "history.jsonl"
    path.write_text('{"step": 1, "identity": 0.5, "generic": 0.1}\n{"step": 2, "identity"')

    def full(self: Path, mode: str = "r", *others: Any, **options: Any) -> Any:
        if mode[0] != "r":
            raise OSError(errno.ENOSPC, "No space left on device")
        return own(self, mode, *others, **options)

    own = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(StorageFailed):
            History(path, keep_until=1)

    assert [entry["step"] for entry in History(path, keep_until=1).entries] == [1]


def test_an_unfinished_run_is_not_mixed_with_other_options(
    pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """Going on with another learning rate is refused by name; --restart starts anew."""
    stopped_run(pipe, people, config, tmp_path / "prefix")
    other = config.model_copy(update={"lr": 1e-3})

    with pytest.raises(InvalidInput, match=r"config\.lr.*--restart"):
        run(pipe, people, other, tmp_path / "prefix")
    train(other, pipe, people, GENERIC, tmp_path / "prefix", restart=True, progress=False)

    assert TrainConfig.load(tmp_path / "prefix" / "config.yaml") == other


def test_a_loss_that_is_not_a_number_ends_the_run(people: Identities, config: TrainConfig, tmp_path: Path) -> None:
    """A UNet that answers NaN is reported with the step, and no prefix is written."""
    pipe = small_pipe()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))

    with pytest.raises(TrainingFailed, match=r"nan at step 0.*--restart"):
        run(pipe, people, config, tmp_path / "prefix")

    assert not (tmp_path / "prefix" / "prefix.safetensors").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_typed_error(pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path) -> None:
    """Where the history cannot be written, the error names the file."""
    unfinished = tmp_path / "prefix" / "unfinished"
    unfinished.mkdir(parents=True)
    stopped_run(pipe, people, config, tmp_path / "other")

    history = History(unfinished / "history.jsonl", keep_until=0)
    history.path.unlink()
    history.path.symlink_to("/dev/full")
    history.add(step=1, identity=0.0, generic=0.0)
    with pytest.raises(StorageFailed, match=r"history\.jsonl.*No space left"):
        history.flush()


def test_an_output_that_is_a_file_is_a_typed_error(
    pipe: Any, people: Identities, config: TrainConfig, tmp_path: Path
) -> None:
    """An output path below a file is refused as a storage error with the path."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageFailed, match="file"):
        run(pipe, people, config, tmp_path / "file" / "prefix")


def test_eighty_columns_show_what_was_measured(tmp_path: Path) -> None:
    """The loss is cut off there, and not how far the gap is closed."""
    terminal, state = io.StringIO(), State.start(torch.zeros(1, 1), people=1)
    history = History(tmp_path / "history.jsonl", keep_until=0)
    history.add(step=750, identity=0.0123, generic=0.0012)
    state.step = 750
    bar = tqdm(total=1000, desc="prefix", unit="step", ncols=80, file=terminal)
    bar.start_t -= 299  # five minutes ago

    show(bar, TrainConfig(), state, history, Measurement(gap_closed=0.853, generic_drift=0.011))
    bar.refresh()

    shown = terminal.getvalue().split("\r")[-1]
    assert "gap closed 85 % drift 1.1 %" in shown
    assert len(shown) <= 80
