"""Concept ablation, model-based: the model learns to answer a name as it answers the neutral text.

With x a picture that the model draws of the anchor prompt c ("a photo of a man"), x_t the same with noise ε, and c*
the same prompt with a name ("a photo of Bo Tarn"):

    L = ‖ Φ(x_t, c, t).sg() − Φ(x_t, c*, t) ‖² + λ ‖ ε − Φ(x_t, c, t) ‖²

sg stops the gradient; Φ is the model that learns, in both. The second term keeps the anchor where it is. Of the
cross-attention, W_K and W_V learn.

Adapted: c* runs over the names of the whole list, each beside an anchor whose neutral text is its own; where the model
predicts a velocity, ε in the second term is the velocity; w_t = 1; steps and learning rate suit a small model and three
minutes.

Source:
    Kumari, Zhang, Wang, Shechtman, Zhang and Zhu, Ablating Concepts in Text-to-Image Diffusion Models, ICCV 2023,
    arXiv:2303.13516; authors' code github.com/nupurkmr9/concept-ablation.

Letters: B pictures in a batch; latents (C, H, W).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from apl_guard.trainer.model.condition import Condition
from apl_guard.trainer.model.diffusion import process_of
from apl_guard.trainer.model.prompt_embeds import PromptEmbeds
from apl_guard.trainer.model.unets import predict
from apl_guard.trainer.peers.learning import learner
from apl_guard.trainer.peers.peer import Files, Task
from apl_guard.trainer.peers.samples import draw_latents
from apl_guard.trainer.peers.weights import WeightEdit, changes_of, cross_attention
from apl_guard.trainer.train.loss import distance


def ablation_loss(phi_name: Tensor, phi_anchor: Tensor, ideal: Tensor, lambda_: float) -> Tensor:
    """L, as a mean over the batch.

    Args:
        phi_name: Φ(x_t, c*, t), shape (B, C, H, W).
        phi_anchor: Φ(x_t, c, t), shape (B, C, H, W).
        ideal: What an ideal Φ(x_t, c, t) is: ε or the velocity, shape (B, C, H, W).
        lambda_: λ.

    Example:
        >>> one = torch.ones(1, 1, 1, 1)
        >>> ablation_loss(3 * one, one, 2 * one, lambda_=0.5)
        tensor(4.5000)
    """
    return (distance(phi_name, phi_anchor.detach()) + lambda_ * distance(phi_anchor, ideal)).mean()


@dataclass(frozen=True)
class Ablation(WeightEdit):
    """Concept ablation of every name on the list."""

    lambda_: float = 1.0
    steps: int = 250
    batch: int = 16
    lr: float = 1e-4
    pictures: int = 120
    """How many anchor pictures are drawn."""
    names_each: int = 6
    """Names that stand beside each of them."""
    sampling_steps: int = 20
    guidance: float = 3.0
    key: ClassVar[str] = "concept ablation"
    source: ClassVar[str] = "Kumari et al., ICCV 2023, arXiv:2303.13516"

    def learn(self, pipe: Any, task: Task, progress: bool = True) -> Files:
        """Draw anchor pictures, then minimise L."""
        rng = random.Random(task.seed)
        names = task.names
        shown = list(names.values())
        neutrals = [shown[k % len(shown)] for k in range(self.pictures)]
        templates = [rng.choice(task.people.templates) for _ in neutrals]
        anchors = [template.replace("{name}", who) for template, who in zip(templates, neutrals, strict=True)]
        x = draw_latents(pipe, anchors, self.sampling_steps, self.guidance, task.seed, progress)  # (M, C, H, W)
        alike = {who: [name for name, neutral in names.items() if neutral == who] for who in set(shown)}
        named = [
            [template.replace("{name}", name) for name in rng.sample(alike[who], min(self.names_each, len(alike[who])))]
            for template, who in zip(templates, neutrals, strict=True)
        ]

        process = process_of(pipe.scheduler)
        embeds = PromptEmbeds(pipe, [*anchors, *(text for texts in named for text in texts)])
        generator = torch.Generator().manual_seed(task.seed)
        with learner(pipe, partial(cross_attention, keys_and_values=True), self.lr) as (unet, step):
            for _ in tqdm(range(self.steps), desc=self.key, unit="step", disable=not progress):
                m = torch.randint(len(x), (self.batch,), generator=generator)
                t = torch.randint(process.levels, (self.batch,), generator=generator)
                noise = torch.randn((self.batch, *x.shape[1:]), generator=generator)
                z, t, noise = (part.to(pipe.unet.device) for part in (x[m], t, noise))
                x_t = process.noised(z, noise, t)
                c = embeds([anchors[k] for k in m])
                c_star = embeds([rng.choice(named[k]) for k in m])
                both = Condition.cat([c_star, c])
                phi = predict(unet, torch.cat([x_t, x_t]), torch.cat([t, t]), both)
                phi_name, phi_anchor = phi.chunk(2)
                step(ablation_loss(phi_name, phi_anchor, process.truth(z, noise, t), self.lambda_))
            return changes_of(pipe.unet, unet)
