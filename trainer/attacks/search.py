"""Searches by somebody who has the weights and pictures of the person: for what to write so that the prefix fails.

tokens     Discrete tokens in front of the prompt that names the person, behind the prefix. What is found is text, and
           can be sent to a guard by anybody.                         (Zhang et al., UnlearnDiffAtk, arXiv:2310.11868)
embedding  One pseudo-word in place of the name. It is no text: only who can bring an embedding along can use it.
                                                              (Pham et al., Concept Inversion, arXiv:2308.01508)

Both minimise the denoising loss of the person's pictures, with the prefix in place:

    ‖ ε(z_t, t, [P, …A…]) − ε ‖²        (or v in place of ε, where that is what the model predicts)

The search for tokens exchanges one token at a time, greedily (GCG; Zou et al., arXiv:2307.15043): the gradient says
which exchanges promise most, some of them are tried on the same noise, and the best is kept if it is better than what
was there. Its tokens are those that can be typed one beside the other (`typable_tokens`), else the text that is sent
would be read as other tokens than were found. (Adam on mixtures of tokens, brought back onto the simplex as in
UnlearnDiffAtk, did not find words for things on the bare model.)

Letters: M people, R pictures of each, K tokens or vectors, V tokens that can be typed, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from apl_guard.adapters.inject import embed, encode_prompts, tokenize_with_prefix
from apl_guard.trainer.attacks.words import typable_tokens, typed
from apl_guard.trainer.model.diffusion import process_of
from apl_guard.trainer.model.unets import predict
from apl_guard.trainer.train.loss import distance
from apl_guard.trainer.train.rows import insert_vectors, length_of, sentinels

__all__ = [
    "VERSION",
    "EmbeddingSearch",
    "Kind",
    "Search",
    "TokenSearch",
    "Wanted",
    "make_search",
]

VERSION = 4
"""Of the searches. Curves that another version found are not read."""
Kind = Literal["tokens", "embedding"]
TOKENS = 5
"""K of the search for tokens."""
_EMBEDDING_RATE = 0.5
"""Learning rate of the search for pseudo-words, in units of the spread of the token embeddings."""
_CANDIDATES = 8
"""Exchanges that are tried for each person in a step of the search for tokens."""
_PROMISING = 32
"""For each place, tokens by the gradient that an exchange is drawn from."""
_DRAWS = 4
"""Batches whose mean the loss is, where steps are compared."""
_BATCH = 4
"""Noised pictures of each person in a step."""


@dataclass(frozen=True)
class Wanted:
    """Whom the searcher wants."""

    names: tuple[str, ...]
    """M names."""
    latents: Tensor
    """Pictures of them, shape (M, R, C, H, W)."""
    prompts: tuple[str, ...]
    """What stands behind the tokens that are searched for: M texts."""


class _Noised(NamedTuple):
    """Pictures (M·batch, C, H, W), the noise that is added to each, and the noise levels (M·batch,)."""

    z: Tensor
    noise: Tensor
    t: Tensor


class Search(ABC):
    """A search for all people at once, each for themselves.

    Args:
        pipe: The model, frozen.
        vectors: The prefix that is in place, shape (N, D); None for the bare model.
        wanted: Whom the searcher wants.
        rows: Token ids of the prompts, with room for prefix and attack, shape (M, L).
        seed: Of noise and noise levels.
        dtype: What the UNet computes in.
    """

    def __init__(
        self, pipe: Any, vectors: Tensor | None, wanted: Wanted, rows: Tensor, seed: int, dtype: torch.dtype
    ) -> None:
        self._pipe, self._wanted, self._rows, self._dtype = pipe, wanted, rows, dtype
        self._device = pipe.unet.device
        self._vectors = None if vectors is None else vectors.to(self._device)
        self._rng = torch.Generator().manual_seed(seed)
        self.steps = 0
        """Steps done."""

    @abstractmethod
    def found(self) -> Tensor:
        """The embeddings found so far, shape (M, K, D)."""

    def prompt_embeds(self) -> Tensor:
        """The prompt embeds of what was found, with the prefix in place, shape (M, L, D)."""
        return self._embeds(self.found())

    def step(self) -> float:
        """Take one step for every person.

        Returns:
            The loss before it, the mean over the people.
        """
        loss = self._step()
        self.steps += 1
        return loss / len(self._wanted.names)

    @torch.no_grad()
    def loss(self, seed: int) -> float:
        """The loss of what was found, on noise of its own: for comparison between steps."""
        return self._mean_loss(self.prompt_embeds(), seed)

    @torch.no_grad()
    def loss_of_names(self, seed: int) -> float:
        """The loss of the bare model for the names themselves, on the same noise: what there is to be brought back."""
        pipe = self._pipe
        names = [f"a photo of {name}" for name in self._wanted.names]
        return self._mean_loss(encode_prompts(pipe.text_encoder, pipe.tokenizer, names), seed)

    @abstractmethod
    def _step(self) -> float:
        """Improve what was found, and return the sum of the people's losses before."""

    def _mean_loss(self, c: Tensor, seed: int) -> float:
        rng = torch.Generator().manual_seed(seed)
        return sum(float(self._losses(c, self._draw(rng)).mean()) for _ in range(_DRAWS)) / _DRAWS

    def _embeds(self, A: Tensor) -> Tensor:
        """The prompt embeds (M, L, D) of vectors (M, K, D) in their places."""
        A = A.flatten(0, 1)  # (MK, D)
        return embed(self._pipe.text_encoder, self._rows, A if self._vectors is None else torch.cat([self._vectors, A]))

    def _draw(self, rng: torch.Generator) -> _Noised:
        """Some noised pictures of each person."""
        z, M = self._wanted.latents, len(self._wanted.names)
        picture = torch.randint(z.shape[1], (M, _BATCH), generator=rng)
        z = torch.stack([z[m, picture[m]] for m in range(M)]).flatten(0, 1)  # (M·batch, C, H, W)
        noise = torch.randn(z.shape, generator=rng)
        t = torch.randint(len(self._pipe.scheduler.alphas_cumprod), (len(z),), generator=rng)
        return _Noised(z.to(self._device), noise.to(self._device), t.to(self._device))

    def _losses(self, c: Tensor, noised: _Noised) -> Tensor:
        """Each person's loss, shape (M,), so that none depends on how many others there are; c of shape (M, L, D)."""
        process, (z, noise, t) = process_of(self._pipe.scheduler), noised
        z_t = process.noised(z, noise, t)
        eps = predict(self._pipe.unet, z_t, t, c.repeat_interleave(_BATCH, dim=0), self._dtype)  # (M·batch, C, H, W)
        return distance(eps, process.truth(z, noise, t)).view(-1, _BATCH).mean(1)


class EmbeddingSearch(Search):
    """A search for one pseudo-word in place of each name.

    Args:
        start: The pseudo-words at the start, shape (M, 1, D).
        rate: Learning rate.
        others: As for `Search`.
    """

    def __init__(self, start: Tensor, rate: float, *others: Any) -> None:
        super().__init__(*others)
        self._words = start.to(self._device, copy=True).requires_grad_(True)
        self._adam = torch.optim.Adam([self._words], lr=rate)

    def found(self) -> Tensor:
        """The pseudo-words, shape (M, 1, D)."""
        return self._words

    def _step(self) -> float:
        loss = self._losses(self.prompt_embeds(), self._draw(self._rng)).sum()
        self._adam.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._adam.step()
        return float(loss.detach())


class TokenSearch(Search):
    """A search for tokens in front of the prompt.

    Args:
        typable: Ids of the V tokens that may be taken.
        start: The tokens at the start, numbers below V, shape (M, K).
        others: As for `Search`.
    """

    def __init__(self, typable: Sequence[int], start: Tensor, *others: Any) -> None:
        super().__init__(*others)
        self._typable, self._chosen = typable, start.to(self._device)
        table: Tensor = self._pipe.text_encoder.get_input_embeddings().weight.detach().float()
        self._words = table[list(typable)]  # (V, D)

    def found(self) -> Tensor:
        """The embeddings of the tokens, shape (M, K, D)."""
        return self._words[self._chosen]

    def tokens(self) -> list[list[int]]:
        """The ids of what was found: K for each person."""
        return [[self._typable[k] for k in row] for row in self._chosen.tolist()]

    def texts(self) -> list[str]:
        """What was found, as text in front of the prompts."""
        words = [typed(self._pipe.tokenizer, ids) for ids in self.tokens()]
        return [f"{found} {prompt}" for found, prompt in zip(words, self._wanted.prompts, strict=True)]

    def _step(self) -> float:
        noised = self._draw(self._rng)
        one_hot = torch.nn.functional.one_hot(self._chosen, len(self._words)).float().requires_grad_(True)  # (M, K, V)
        loss = self._losses(self._embeds(one_hot @ self._words), noised).sum()
        (gradient,) = torch.autograd.grad(loss, one_hot)
        with torch.no_grad():
            tried = torch.stack([self._chosen, *self._exchanges(gradient)])  # (1 + candidates, M, K)
            losses = torch.stack([self._losses(self._embeds(self._words[one]), noised) for one in tried])
            best = losses.argmin(0)  # (M,)
            self._chosen = tried[best, torch.arange(len(best), device=self._device)]
        return float(loss.detach())

    def _exchanges(self, gradient: Tensor) -> list[Tensor]:
        """Rows (M, K) in which one token is another: one of those that promise most by the gradient (M, K, V)."""
        M, K, V = gradient.shape
        promising = (-gradient).topk(min(_PROMISING, V)).indices  # (M, K, promising)
        people, rows = torch.arange(M, device=self._device), []
        for _ in range(_CANDIDATES):
            place = torch.randint(K, (M,), generator=self._rng).to(self._device)
            rank = torch.randint(promising.shape[-1], (M,), generator=self._rng).to(self._device)
            row = self._chosen.clone()
            row[people, place] = promising[people, place, rank]
            rows.append(row)
        return rows


def make_search(
    kind: Kind, pipe: Any, vectors: Tensor | None, wanted: Wanted, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Search:
    """Begin a search.

    Args:
        kind: For what.
        pipe: The model, frozen.
        vectors: The prefix that is in place, shape (N, D); None for the bare model.
        wanted: Whom the searcher wants.
        seed: Of the start, of noise and of noise levels.
        dtype: What the UNet computes in.
    """
    n = 0 if vectors is None else len(vectors)
    M, end = len(wanted.names), pipe.tokenizer.eos_token_id
    rng = torch.Generator().manual_seed(seed)
    table: Tensor = pipe.text_encoder.get_input_embeddings().weight.detach().float().cpu()
    if kind == "embedding":
        before = "a photo of"
        rows = tokenize_with_prefix(pipe.tokenizer, [before] * M, n)
        rows = insert_vectors(rows, 1 + n + length_of(pipe.tokenizer, before), sentinels(M, n, 1), end)
        start = table[[pipe.tokenizer("person", add_special_tokens=False)["input_ids"][0]] * M].unsqueeze(1)
        rate = _EMBEDDING_RATE * float(table.std())
        return EmbeddingSearch(start, rate, pipe, vectors, wanted, rows, seed, dtype)
    rows = tokenize_with_prefix(pipe.tokenizer, list(wanted.prompts), n)
    rows = insert_vectors(rows, 1 + n, sentinels(M, n, TOKENS), end)
    typable = typable_tokens(pipe.tokenizer)
    start = torch.randint(len(typable), (M, TOKENS), generator=rng)
    return TokenSearch(typable, start, pipe, vectors, wanted, rows, seed, dtype)
