"""An attack in the loop of training: what the prefix has to withstand while it learns.

For half of each identity batch, K vectors behind the prefix learn, in a few steps, to bring back what the model draws
for the name without a prefix. The prefix then takes its step against them: with them in the prompt, too, the
answer shall be the neutral one.

    A* = argmin_A ‖ ε(z_t, t, [P, A, prompt]) − ε(z_t, t, prompt) ‖²        P held fixed
    L  = (1 + η) ‖ ε(z_t, t, [P, A*, prompt]) − ε(z_t, t, c₂) ‖²            A* held fixed

The attack moves by the sign of its gradient, from embeddings of random tokens on, as in Madry et al., arXiv:1706.06083.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.examples import Batch, Data
from apl_guard.trainer.data.seeds import ATTACKS, seed_of
from apl_guard.trainer.model.families import family_of
from apl_guard.trainer.model.prompt_embeds import PromptEmbeds
from apl_guard.trainer.train.loss import distance
from apl_guard.trainer.train.rows import insert_vectors, sentinels

__all__ = ["VECTORS", "Adversary", "attacked"]

VECTORS = 4
"""K: how many vectors the attacker has in each prompt."""
_STEP = 0.5
"""How far a step goes, in units of the spread of the token embeddings."""


def attacked(config: TrainConfig) -> int:
    """How many of the identity examples of a batch are attacked: the first half."""
    return (config.identity_batch + 1) // 2 if config.adversarial else 0


class Adversary:
    """Attacks a prefix on the examples that it is trained on.

    Args:
        pipe: The model, frozen.
        data: The examples.
        config: Number of vectors, steps of the attack, seed, and how the model is asked.
    """

    def __init__(self, pipe: Any, data: Data, config: TrainConfig) -> None:
        self._family, self._data, self._config = family_of(pipe, config), data, config
        self._embeds = PromptEmbeds(pipe, data.identity.prompts, config)
        tables = self._family.tables
        V = min(len(table) for table in tables)  # the same, where the tokenizers are
        self._table = torch.cat([table[:V] for table in tables], dim=1)  # (V, D)
        self._rate = torch.cat([_STEP * table.std().expand(table.shape[1]) for table in tables])  # (D,)

    def __call__(
        self, ids: Tensor, P: Tensor, batch: Batch, z_t: Tensor, t: Tensor, index: int
    ) -> tuple[Tensor, Tensor]:
        """Attack the first examples of a batch.

        Args:
            ids: Rows with room for the prefix, shape (B, S, L).
            P: The prefix, shape (N, D).
            batch: What is looked at.
            z_t: Noised latents, shape (B, C, H, W).
            t: Noise levels, shape (B,).
            index: Number of the step: equal numbers make equal attacks.

        Returns:
            The rows with the attacker's vectors in the first of them, and the table of all vectors, the prefix first.
            Gradients flow to the prefix, none to the attack.
        """
        B = attacked(self._config)
        inserted = sentinels(B, len(P), VECTORS)
        rows = ids[:B].clone()
        tokenizers, lengths = self._family.tokenizers, self._family.lengths().values()
        for s, (tokenizer, length) in enumerate(zip(tokenizers, lengths, strict=True)):
            row = rows[:, s, :length]
            place = int((row[0] == -len(P)).nonzero()) + 1  # behind the prefix; T5 has no start token before it
            rows[:, s, :length] = insert_vectors(row, place, inserted, tokenizer.eos_token_id)
        z_t, t = z_t[:B], t[:B]
        names = [self._data.identity.prompts[k] for k in batch.identity[:B].tolist()]
        with torch.no_grad():
            eps_named = self._family.predict(z_t, t, self._embeds(names))
        rng = torch.Generator().manual_seed(seed_of(self._config.seed, ATTACKS, index))
        start = torch.randint(len(self._table), (B * VECTORS,), generator=rng)
        A = self._table[start.to(self._table.device)].clone()
        for _ in range(self._config.adversarial):
            A.requires_grad_(True)
            c = self._family.embed(rows, torch.cat([P.detach(), A]))
            loss = distance(self._family.predict(z_t, t, c), eps_named).sum()
            (gradient,) = torch.autograd.grad(loss, A)
            A = (A - self._rate * gradient.sign()).detach()
        return torch.cat([rows, ids[B:]]), torch.cat([P, A.detach()])
