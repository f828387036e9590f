"""The demo: the shipped model, a prefix trained on it, the guard, figures and a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apl_guard.errors import ExtraMissing
from apl_guard.prefix import Prefix
from apl_guard.storage import check_place, write_file
from apl_guard.trainer import minifaces
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.demo.page import draw_grid, pick_pairs, write_html
from apl_guard.trainer.evaluate import evaluate
from apl_guard.trainer.evaluate.curves import read_curves
from apl_guard.trainer.evaluate.result import EvalResult
from apl_guard.trainer.minifaces.judge import Judges
from apl_guard.trainer.model.pipeline import open_pipe
from apl_guard.trainer.train import train
from apl_guard.trainer.train.history import read_history
from apl_guard.trainer.train.plan import make_plan

_LEAST_MINUTES = 1.0


@dataclass(frozen=True)
class DemoResult:
    """What the demo wrote and found."""

    report: Path
    grid: Path
    evaluation: EvalResult
    seconds: float


def run_demo(
    output: Path,
    *,
    quick: bool = False,
    minutes: float = 9.0,
    people: int | None = None,
    seed: int = 0,
    judges: Judges | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> DemoResult:
    """Run the demo.

    Args:
        output: Folder for `report.html`, `grid.png`, the evaluation and the prefix.
        quick: Whether to take the shipped prefix instead of training one.
        minutes: How long making the data and training may take together.
        people: How many of the seen and of the unseen people to draw; default 40, or 20 if quick.
        seed: Of the pictures.
        judges: Who looks at the pictures; default the judges that are shipped.
        progress: Whether to draw progress bars.
        say: Where to say what is going on.

    Raises:
        ModelInvalid, PrefixInvalid: The shipped weights are not there.
        ExtraMissing: scipy is not installed.
        StorageFailed: Something cannot be written.
    """
    began = time.monotonic()
    ExtraMissing.check("eval", "scipy")
    for name in ("report.html", "grid.png", "evaluation.json"):
        check_place(output / name)  # here, for what is written comes minutes later
    pipe = open_pipe(minifaces.model_path())
    if quick:
        folder = minifaces.prefix_path()
        prefix = Prefix.load(folder)
        say(f"taking the shipped prefix: {prefix.n} vectors")
    else:
        config = demo_config(minutes)
        generic = minifaces.captions(config.generic_count, seed=config.seed)
        plan = make_plan(config, pipe, minifaces.identities_file(), generic)
        left = max(_LEAST_MINUTES, minutes - (plan.seconds_images + plan.seconds_evaluation) / 60)
        config = config.model_copy(update={"time_limit_minutes": left})
        longest = (plan.seconds_images + min(plan.seconds_steps, 60 * left) + plan.seconds_evaluation) / 60
        amount = f"{plan.images} images, up to {plan.steps} steps"
        say(f"training a prefix: about {longest:.0f} minutes ({amount})")
        folder = output / "prefix"
        train(config, pipe, minifaces.identities_file(), generic, folder, restart=True, progress=progress)
        prefix = Prefix.load(folder)

    say("drawing the same prompts without and with the guard")
    people = people or (20 if quick else 40)
    result = evaluate(
        pipe,
        prefix,
        images_per_person=1,
        people_limit=people,
        seed=seed,
        judges=judges,
        steps=20,
        keep_images=True,
        fast=True,
        progress=progress,
    )
    groups = pick_pairs(result)
    seconds = time.monotonic() - began
    made = "shipped" if quick else "trained just now"
    drawn = sum(len(pictures) for arms in result.images.values() for pictures in arms.values())
    facts = {
        "model": "minifaces, the reference world of apl-guard: every person is invented",
        "prefix": f"{prefix.metadata.name}, {prefix.n} vectors, {made}, digest {prefix.digest[:12]}",
        **_recipe(folder / "config.yaml"),
        "images": f"{drawn} of held-out prompts, {result.settings['steps']} steps, "
        f"guidance {result.settings['guidance']:g}",
        "more figures": "apl-guard eval --model minifaces --prefix minifaces --images-per-person 20",
        "time": f"{seconds / 60:.1f} minutes",
    }
    curves = minifaces.prefix_path().parent / "curves.json"
    tradeoff = read_curves(curves) if curves.is_file() else []
    page = write_html(result, groups, read_history(folder / "history.jsonl"), tradeoff, facts)
    grid, report = output / "grid.png", output / "report.html"
    write_file(output / "evaluation.json", result.to_json().encode())
    write_file(grid, draw_grid(groups))
    write_file(report, page.encode())
    return DemoResult(report, grid, result, seconds)


def demo_config(minutes: float) -> TrainConfig:
    """The recipe of the shipped prefix where it is there, else the defaults, with a time limit."""
    recipe = minifaces.prefix_path() / "config.yaml"
    config = TrainConfig.load(recipe) if recipe.is_file() else TrainConfig()
    return config.model_copy(update={"time_limit_minutes": minutes})


def _recipe(path: Path) -> dict[str, str]:
    """What is worth telling of how a prefix was trained, where that is known."""
    if not path.is_file():
        return {}
    config = TrainConfig.load(path)
    weights = f"{config.identity_weight:g} : {config.generic_weight:g}"
    text = f"learning rate {config.lr:g}, identity : generic = {weights}, neutral prompt {config.neutral}"
    return {"training": text}
