"""Unified Concept Editing: the cross-attention projections W_K and W_V, edited in closed form.

Of all W, the one that sends each concept c_i to where its replacement c_i* went, and leaves c_j where they were:

    min_W  Σ_i ‖W c_i − v_i*‖² + Σ_j ‖W c_j − W_old c_j‖² + λ ‖W − W_old‖²,      v_i* = W_old c_i*

    (7)  W = (Σ_i v_i* c_iᵀ + Σ_j W_old c_j c_jᵀ + λ W_old) (Σ_i c_i c_iᵀ + Σ_j c_j c_jᵀ + λ I)⁻¹

Every v is W_old times something, so W = W_old A with one A for all layers, which is how it is computed here.

Adapted: c are states of the text encoder at the last token of the name and at those behind it, which have read the
name as well, each beside the state at the same distance behind the neutral text; names stand alone and in templates.
c_j are states of generic prompts at all tokens. The terms in j are weighted so that they weigh `keep` times as much as
those in i (by trace), and λ so that it weighs `rest` times as much, for there are many more states of one kind.

Source:
    Gandikota, Orgad, Belinkov, Materzyńska and Bau, Unified Concept Editing in Diffusion Models, WACV 2024,
    arXiv:2308.14761.

Letters: D width of the prompt embeds, n states.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from apl_guard.trainer.model.prompt_embeds import embeds_of
from apl_guard.trainer.peers.peer import Files, Task
from apl_guard.trainer.peers.weights import WeightEdit, changes_of, cross_attention, with_own_unet

_BATCH = 64


def closed_form(c: Tensor, c_star: Tensor, c_keep: Tensor, keep: float, lambda_: float) -> Tensor:
    """A of W = W_old A.

    Args:
        c: Concepts, shape (n, D).
        c_star: What each becomes, shape (n, D).
        c_keep: What stays, shape (n′, D).
        keep: Weight of each of the latter.
        lambda_: λ.

    Returns:
        Shape (D, D), float64.

    Example:
        >>> e = torch.eye(3)
        >>> A = closed_form(e[:1], e[1:2], e[1:], keep=1.0, lambda_=1e-9)     # e₀ becomes e₁
        >>> (A @ e[0].double()).round(decimals=6).tolist()
        [0.0, 1.0, 0.0]
    """
    c, c_star, c_keep = c.double(), c_star.double(), c_keep.double()
    same = keep * c_keep.T @ c_keep + lambda_ * torch.eye(c.shape[1], dtype=torch.float64)  # (D, D), symmetric
    # X (cᵀc + same) = c*ᵀc + same, solved from the left as its transpose.
    transposed: Tensor = torch.linalg.solve(c.T @ c + same, c.T @ c_star + same)
    return transposed.T


@dataclass(frozen=True)
class UCE(WeightEdit):
    """Unified Concept Editing of every name on the list at once."""

    keep: float = 1.0
    """What generic states weigh together, as a multiple of what the names weigh."""
    rest: float = 0.01
    """What λ weighs, in the same measure."""
    templates: int = 2
    """Templates for each name, beside the name alone."""
    generic: int = 256
    """Generic prompts."""
    key: ClassVar[str] = "UCE"
    source: ClassVar[str] = "Gandikota et al., WACV 2024, arXiv:2308.14761"

    @torch.no_grad()
    def learn(self, pipe: Any, task: Task, progress: bool = True) -> Files:
        """Solve (7) for every projection."""
        rng = random.Random(task.seed)
        named: list[tuple[str, str, str]] = []
        for name, neutral in task.names.items():
            chosen = rng.sample(task.people.templates, min(self.templates, len(task.people.templates)))
            named += [(template, name, neutral) for template in ("{name}", *chosen)]
        c, c_star = _aligned(pipe, named)
        generic = rng.sample(task.generic, min(self.generic, len(task.generic)))
        c_keep = embeds_of(pipe, generic, _BATCH).flatten(0, 1)
        trace = c.double().square().sum().item()
        keep = self.keep * trace / c_keep.double().square().sum().item()
        A = closed_form(c, c_star, c_keep, keep, self.rest * trace / c.shape[1])

        own = with_own_unet(pipe)
        for weight in cross_attention(own.unet, keys_and_values=True).values():
            weight.copy_(weight.double() @ A)
        return changes_of(pipe.unet, own.unet)


def _aligned(pipe: Any, named: Sequence[tuple[str, str, str]]) -> tuple[Tensor, Tensor]:
    """States from the last token of a name on, and those from the last token of its neutral text on, (n, D) twice."""
    texts = [template.replace("{name}", who) for template, *pair in named for who in pair]
    states = embeds_of(pipe, texts, _BATCH)  # (2M, L, D)
    c: list[Tensor] = []
    c_star: list[Tensor] = []
    for m, (template, name, neutral) in enumerate(named):
        ours, theirs = (_last_token(pipe.tokenizer, template, who) for who in (name, neutral))
        length = states.shape[1] - max(ours, theirs)
        c.append(states[2 * m, ours : ours + length])
        c_star.append(states[2 * m + 1, theirs : theirs + length])
    return torch.cat(c), torch.cat(c_star)


def _last_token(tokenizer: Any, template: str, who: str) -> int:
    """The place of the last token of what stands for {name}, counted from the start token."""
    text = template.split("{name}")[0] + who
    ids = tokenizer(text, truncation=True)["input_ids"]
    return len(ids) - 2
