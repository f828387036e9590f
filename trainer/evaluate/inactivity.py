"""What the guard does to prompts that name nobody, beside what nobody minds: a few steps less, or another sampler.

Same prompts, same seeds. The guarded pictures are compared with the plain ones, and so are plain pictures drawn in four
fifths of the steps (20 in place of 25, unless another number is asked for), once by the pipe's own sampler and once by
another, DPM-Solver++. How far apart two pictures are is said
in the features of a judge (‖f(a) − f(b)‖, f the features in which the Fréchet distance is measured), in
pixels (root of the mean squared difference, of a range of 1), and in structure (1 − SSIM).

A prefix in front of every prompt changes something. *Gated* is the guard that puts it only where a prompt names
somebody on its list, here everybody whom the model knows: its distance is 0, or it took a nameless prompt for a name.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DPMSolverMultistepScheduler

from apl_guard.errors import ExtraMissing
from apl_guard.guard import Guard
from apl_guard.trainer.evaluate.asking import ask_for_anything
from apl_guard.trainer.evaluate.gated import gating_policy
from apl_guard.trainer.evaluate.result import Figures, Pictures
from apl_guard.trainer.evaluate.scores import fidelity, mean_figure
from apl_guard.trainer.evaluate.setting import Setting, drawn_by
from apl_guard.trainer.evaluate.statistics import bootstrap_interval
from apl_guard.trainer.minifaces.people import known_people

DISTANCES = ("feature_distance", "pixel_distance", "structure_distance")


def inactivity(setting: Setting) -> dict[str, dict[str, Figures]]:
    """Guarded and gated against plain; fewer steps, and fewer steps of another sampler, against plain.

    Raises:
        ExtraMissing: torchmetrics is not installed.
    """
    asked = ask_for_anything(setting)
    wanted = [one.attributes for one in asked]
    fewer = replace(setting, steps=max(1, setting.steps * 4 // 5))
    names = tuple(person.name for person in known_people())
    gate = setting.on(setting.pipe, guard=Guard(setting.pipe, policy=gating_policy(names), prefix=setting.prefix))
    pictures = {
        "plain": setting.draw_asked(setting.pipe, asked, "generic"),
        "fewer_steps": fewer.draw_asked(fewer.pipe, asked, "generic", arm="fewer steps"),
        "guarded": setting.draw_asked(setting.guard, asked, "generic"),
        "gated": gate.draw_asked(gate.guard, asked, "generic", arm="gated"),
    }
    with drawn_by(fewer.pipe, DPMSolverMultistepScheduler):
        pictures["other_sampler"] = fewer.draw_asked(fewer.pipe, asked, "generic", arm="other sampler")
    figures: dict[str, Figures] = {}
    apart: dict[str, dict[str, npt.NDArray[np.float64]]] = {}
    for arm, drawn in pictures.items():
        steps = fewer.steps if arm in ("fewer_steps", "other_sampler") else setting.steps
        figures[arm] = {"images": len(drawn), "steps": steps}
        if arm != "plain":
            apart[arm] = distances(setting, pictures["plain"], drawn)
            for name, values in apart[arm].items():
                figures[arm] |= mean_figure(name, values, setting.seed)
        figures[arm] |= fidelity("attribute_fidelity", setting.judges.attributes(drawn), wanted)
    figures["guarded"] |= setting.prefixed(asked)
    figures["gated"] |= gate.prefixed(asked)
    for arm, name, beside in product(("guarded", "gated"), DISTANCES, ("fewer_steps", "other_sampler")):
        both = [apart[arm][name], apart[beside][name]]
        figures[arm] |= ratio_figure(f"{name}_over_{beside}", both, setting.seed)
    setting.show("inactivity", asked, pictures)
    return {"inactivity": figures}


def distances(setting: Setting, a: Pictures, b: Pictures) -> dict[str, npt.NDArray[np.float64]]:
    """How far apart pictures are, pair by pair: name of the measure → shape (n,).

    Raises:
        ExtraMissing: torchmetrics is not installed.
    """
    features = (setting.judges.features(a) - setting.judges.features(b)).norm(dim=-1)
    pixels = np.sqrt(((a / 255.0 - b / 255.0) ** 2).mean(axis=(1, 2, 3)))
    return dict(zip(DISTANCES, (features.double().numpy(), pixels, 1 - structural_similarity(a, b)), strict=True))


def structural_similarity(a: Pictures, b: Pictures) -> npt.NDArray[np.float64]:
    """SSIM of each pair, shape (n,): 1 for equal pictures.

    Source:
        Wang et al., IEEE Transactions on Image Processing 13 (2004).

    Raises:
        ExtraMissing: torchmetrics is not installed.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ExtraMissing("eval", needs="torchmetrics") from error
    x, y = (torch.from_numpy(pictures).permute(0, 3, 1, 2).double() / 255 for pictures in (a, b))
    value = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    assert isinstance(value, torch.Tensor)
    similarity: npt.NDArray[np.float64] = value.reshape(-1).numpy()
    return similarity


def ratio_figure(name: str, both: list[npt.NDArray[np.float64]], seed: int) -> Figures:
    """The ratio of two means over the same prompts, with its interval; absent where the lower one is zero.

    Example:
        >>> ratio_figure("r", [np.array([1.0, 3.0]), np.array([2.0, 6.0])], seed=0)["r"]
        0.5
    """

    def ratio(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> float:
        return float(above.mean() / max(below.mean(), 1e-12))

    if not both[1].any():
        return {}
    interval = list(bootstrap_interval(ratio, both, seed, paired=True)) if len(both[0]) > 1 else None
    return {name: ratio(*both), f"{name}_ci": interval}
