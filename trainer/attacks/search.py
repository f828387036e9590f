"""Searches by somebody who has the weights and pictures of the person: for what to write so that the prefix fails.

tokens     Discrete tokens in front of the prompt that names the person, behind the prefix. What is found is text, and
           can be sent to a guard by anybody.                         (Zhang et al., UnlearnDiffAtk, arXiv:2310.11868)
embedding  One pseudo-word in place of the name. It is no text: only who can bring an embedding along can use it.
                                                              (Pham et al., Concept Inversion, arXiv:2308.01508)

Both minimise the denoising loss of the person's pictures, with the prefix in place:

    ‖ ε(z_t, t, [P, …A…]) − ε ‖²        (or v in place of ε, where that is what the model predicts)

The search for tokens walks over mixtures of tokens (Adam, then back onto the simplex) and looks at the loss of the
likeliest token in each place, with the gradient passed straight through. Its tokens are those that can be typed one
beside the other (`typable_tokens`), else the text that is sent would be read as other tokens than were found.

Letters: M people, R pictures of each, K tokens or vectors, V tokens that can be typed, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from apl_guard.adapters.inject import embed, encode_prompts, tokenize_with_prefix
from apl_guard.trainer.model.diffusion import add_noise, truth
from apl_guard.trainer.model.pipeline import predict
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
    "onto_simplex",
    "typable_tokens",
    "typed",
]

VERSION = 3
"""Of the searches. Curves that another version found are not read."""
Kind = Literal["tokens", "embedding"]
TOKENS = 5
"""K of the search for tokens."""
_EMBEDDING_RATE = 0.5
"""Learning rate of the search for pseudo-words, in units of the spread of the token embeddings."""
_TOKEN_RATE = 0.2
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


class Search:
    """A search for all people at once, each for themselves.

    Args:
        pipe: The model, frozen.
        vectors: The prefix that is in place, shape (N, D); None for the bare model.
        wanted: Whom the searcher wants.
        rows: Token ids of the prompts, with room for prefix and attack, shape (M, L).
        parameters: What is learned, with the people in the first dimension.
        rate: Learning rate.
        seed: Of noise and noise levels.
        dtype: What the UNet computes in.
    """

    def __init__(
        self,
        pipe: Any,
        vectors: Tensor | None,
        wanted: Wanted,
        rows: Tensor,
        parameters: Tensor,
        rate: float,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        self._pipe, self._wanted, self._rows, self._dtype = pipe, wanted, rows, dtype
        device = pipe.unet.device
        self._vectors = None if vectors is None else vectors.to(device)
        self.parameters = parameters.to(device).requires_grad_(True)
        self._adam = torch.optim.Adam([self.parameters], lr=rate)
        self._rng = torch.Generator().manual_seed(seed)
        self.steps = 0
        """Steps done."""

    def found(self) -> Tensor:
        """The embeddings found so far, shape (M, K, D), with a graph that leads to the parameters."""
        raise NotImplementedError

    def prompt_embeds(self) -> Tensor:
        """The prompt embeds of what was found, with the prefix in place, shape (M, L, D)."""
        A = self.found().flatten(0, 1)  # (MK, D)
        return embed(self._pipe.text_encoder, self._rows, A if self._vectors is None else torch.cat([self._vectors, A]))

    def step(self) -> float:
        """Take one step for every person.

        Returns:
            The loss before it, the mean over the people.
        """
        loss = self._loss(self._rng)
        self._adam.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._adam.step()
        self._project()
        self.steps += 1
        return float(loss.detach()) / len(self._wanted.names)

    @torch.no_grad()
    def loss(self, seed: int, draws: int = 4) -> float:
        """The loss of what was found, on noise of its own: for comparison between steps."""
        rng = torch.Generator().manual_seed(seed)
        return sum(float(self._loss(rng)) for _ in range(draws)) / draws / len(self._wanted.names)

    @torch.no_grad()
    def loss_of_names(self, seed: int, draws: int = 4) -> float:
        """The loss of the bare model for the names themselves, on the same noise: what there is to be brought back."""
        pipe = self._pipe
        c = encode_prompts(pipe.text_encoder, pipe.tokenizer, [f"a photo of {name}" for name in self._wanted.names])
        rng = torch.Generator().manual_seed(seed)
        return sum(float(self._denoising_loss(c, rng)) for _ in range(draws)) / draws / len(self._wanted.names)

    def _loss(self, rng: torch.Generator) -> Tensor:
        return self._denoising_loss(self.prompt_embeds(), rng)

    def _denoising_loss(self, c: Tensor, rng: torch.Generator) -> Tensor:
        """The sum of the people's losses, so that none depends on how many others there are; c of shape (M, L, D)."""
        z, M = self._wanted.latents, len(self._wanted.names)
        scheduler = self._pipe.scheduler
        picture = torch.randint(z.shape[1], (M, _BATCH), generator=rng)
        z = torch.stack([z[m, picture[m]] for m in range(M)]).flatten(0, 1)  # (M·batch, C, H, W)
        noise = torch.randn(z.shape, generator=rng)
        t = torch.randint(len(scheduler.alphas_cumprod), (len(z),), generator=rng)
        device = self._pipe.unet.device
        z, noise, t = z.to(device), noise.to(device), t.to(device)
        z_t = add_noise(scheduler.alphas_cumprod, z, noise, t)
        eps = predict(self._pipe.unet, z_t, t, c.repeat_interleave(_BATCH, dim=0), self._dtype)  # (M·batch, C, H, W)
        return distance(eps, truth(scheduler, z, noise, t)).sum() / _BATCH

    def _project(self) -> None:
        """Bring the parameters back to where they may be."""


class EmbeddingSearch(Search):
    """A search for one pseudo-word in place of each name."""

    def found(self) -> Tensor:
        """The pseudo-words, shape (M, 1, D)."""
        return self.parameters


class TokenSearch(Search):
    """A search for tokens in front of the prompt. Its parameters are mixtures of V tokens, shape (M, K, V).

    Args:
        typable: Ids of the V tokens.
        others: As for `Search`.
    """

    def __init__(self, typable: Sequence[int], *others: Any) -> None:
        super().__init__(*others)
        self._typable = typable
        table: Tensor = self._pipe.text_encoder.get_input_embeddings().weight.detach().float()
        self._words = table[list(typable)]  # (V, D)

    def found(self) -> Tensor:
        """The likeliest tokens, shape (M, K, D), with the gradient of the mixtures."""
        likeliest = torch.nn.functional.one_hot(self.parameters.argmax(-1), self.parameters.shape[-1])
        straight = likeliest.to(self.parameters) + self.parameters - self.parameters.detach()  # (M, K, V)
        return straight @ self._words

    def tokens(self) -> list[list[int]]:
        """The ids of what was found: K for each person."""
        return [[self._typable[k] for k in row] for row in self.parameters.argmax(-1).tolist()]

    def texts(self) -> list[str]:
        """What was found, as text in front of the prompts."""
        words = [typed(self._pipe.tokenizer, ids) for ids in self.tokens()]
        return [f"{found} {prompt}" for found, prompt in zip(words, self._wanted.prompts, strict=True)]

    @torch.no_grad()
    def _project(self) -> None:
        self.parameters.copy_(onto_simplex(self.parameters))


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
        return EmbeddingSearch(
            pipe, vectors, wanted, rows, start.clone(), _EMBEDDING_RATE * float(table.std()), seed, dtype
        )
    rows = tokenize_with_prefix(pipe.tokenizer, list(wanted.prompts), n)
    rows = insert_vectors(rows, 1 + n, sentinels(M, n, TOKENS), end)
    typable = typable_tokens(pipe.tokenizer)
    start = torch.nn.functional.one_hot(torch.randint(len(typable), (M, TOKENS), generator=rng), len(typable))
    mixed = onto_simplex(0.5 * start.float() + 0.5 / len(typable))
    return TokenSearch(typable, pipe, vectors, wanted, rows, mixed, _TOKEN_RATE, seed, dtype)


def typable_tokens(tokenizer: Any) -> list[int]:
    """The tokens that can be typed in any order: whole words whose text is read as this one token.

    Pieces of words melt into each other. Of random rows of five tokens of the reference world, one in twenty is read
    as the tokens that it was made of.

    Returns:
        Their ids, in order.
    """
    special = set(tokenizer.all_special_ids)
    whole = sorted(k for token, k in tokenizer.get_vocab().items() if token.endswith("</w>") and k not in special)
    read = tokenizer([typed(tokenizer, [k]) for k in whole], add_special_tokens=False)["input_ids"]
    return [k for k, ids in zip(whole, read, strict=True) if ids == [k]]


def typed(tokenizer: Any, ids: Sequence[int]) -> str:
    """Tokens as text."""
    # As it stands: tidied-up blanks would join what is apart.
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text.strip()


def onto_simplex(x: Tensor) -> Tensor:
    """The nearest points whose last dimension is ≥ 0 and sums to 1.

    Source:
        Held, Wolfe and Crowder, Mathematical Programming 6 (1974).

    Example:
        >>> onto_simplex(torch.tensor([2.0, 1.0, -1.0]))
        tensor([1., 0., 0.])
    """
    ordered = x.sort(-1, descending=True).values
    above = ordered.cumsum(-1) - 1
    places = torch.arange(1, x.shape[-1] + 1, device=x.device)
    last = (ordered - above / places > 0).sum(-1, keepdim=True)
    return (x - above.gather(-1, last - 1) / last).clamp(min=0)
