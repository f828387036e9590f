"""Erased Stable Diffusion, ESD-x: the cross-attention learns to steer away from a concept where it steered towards it.

With θ* the frozen model and c a prompt that names somebody:

    (7)  L = ‖ ε_θ(x_t, c, t) − [ ε_θ*(x_t, t) − η (ε_θ*(x_t, c, t) − ε_θ*(x_t, t)) ] ‖²

x_t are stages of pictures that the model draws of c. Only cross-attention learns, all its layers (the x of ESD-x).

Adapted: x_t come from the frozen model, as in the authors' present code (github.com/rohitgandikota/erasing), and every
stage of a picture is used and not one, for drawing them is most of the work; c are the names of the whole list, in
templates, in place of one concept; the model may predict a velocity, in which the bracket is the same affine formula;
steps and learning rate suit a small model and three minutes.

Source:
    Gandikota, Materzyńska, Fiotto-Kaufman and Bau, Erasing Concepts from Diffusion Models, ICCV 2023,
    arXiv:2303.07345.

Letters: B pictures in a batch; latents (C, H, W).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from apl_guard.trainer.model.prompt_embeds import PromptEmbeds
from apl_guard.trainer.model.unets import predict
from apl_guard.trainer.peers.learning import learner
from apl_guard.trainer.peers.peer import Files, Task
from apl_guard.trainer.peers.samples import draw_stages
from apl_guard.trainer.peers.weights import WeightEdit, changes_of, cross_attention
from apl_guard.trainer.train.loss import distance


def esd_target(eps: Tensor, eps_c: Tensor, eta: float) -> Tensor:
    """The bracket of (7).

    Args:
        eps: ε_θ*(x_t, t), shape (B, C, H, W).
        eps_c: ε_θ*(x_t, c, t), shape (B, C, H, W).
        eta: η.

    Example:
        >>> esd_target(torch.tensor([1.0]), torch.tensor([3.0]), eta=1.0)
        tensor([-1.])
    """
    return eps - eta * (eps_c - eps)


@dataclass(frozen=True)
class ESD(WeightEdit):
    """ESD-x on every name on the list."""

    eta: float = 1.0
    steps: int = 300
    batch: int = 16
    lr: float = 1e-4
    pictures: int = 120
    """How many are drawn, over all names."""
    sampling_steps: int = 20
    guidance: float = 3.0
    """Of the drawing, as in the paper."""
    key: ClassVar[str] = "ESD-x"
    source: ClassVar[str] = "Gandikota et al., ICCV 2023, arXiv:2303.07345"

    def learn(self, pipe: Any, task: Task, progress: bool = True) -> Files:
        """Draw pictures of the names, then minimise (7)."""
        rng = random.Random(task.seed)
        names = list(task.names)
        prompts = [
            rng.choice(task.people.templates).replace("{name}", names[k % len(names)]) for k in range(self.pictures)
        ]
        x, t = draw_stages(
            pipe, prompts, self.sampling_steps, self.guidance, task.seed, progress
        )  # (M, S, C, H, W), (S,)
        embeds = PromptEmbeds(pipe, [*prompts, ""])
        generator = torch.Generator().manual_seed(task.seed)
        with learner(pipe, cross_attention, self.lr) as (unet, step):
            for _ in tqdm(range(self.steps), desc=self.key, unit="step", disable=not progress):
                m = torch.randint(len(prompts), (self.batch,), generator=generator)
                s = torch.randint(len(t), (self.batch,), generator=generator)
                x_t, t_s = x[m, s].to(pipe.unet.device), t[s].to(pipe.unet.device)
                c, nothing = embeds([prompts[k] for k in m]), embeds([""] * self.batch)
                with torch.no_grad():
                    eps = predict(pipe.unet, x_t, t_s, nothing)
                    eps_c = predict(pipe.unet, x_t, t_s, c)
                learned = predict(unet, x_t, t_s, c)
                step(distance(learned, esd_target(eps, eps_c, self.eta)).mean())
            return changes_of(pipe.unet, unet)
