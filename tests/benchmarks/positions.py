"""What changes pictures of prompts that name nobody: the prefix, or that it moves the text up?

    python -m tests.benchmarks.positions moved                     # three minutes on one core
    python -m tests.benchmarks.positions learned --output prefixes/kept --set generic_weight=30    # ten
    python -m tests.benchmarks.positions late                      # three

`moved` draws prompts without any prefix, their tokens at the positions that they would have behind one, and with the
prefix that ships. `learned` learns a prefix by the shipped recipe, changed by `--set`, beside which the text keeps the
positions that it has without one, and draws with it in the same way. Only a caller of the text encoder can do that:
the text encoders of servers and what diffusers makes of an exported prefix count positions from the start of the row.

`late` puts the prefix that ships in front of the prompt after the first two denoising steps, and after four: these
decide how a picture is laid out.

Letters: B rows, L places in a row, N vectors, D width.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from apl_guard.adapters.inject import injected, tokenize_with_prefix
from apl_guard.prefix import Prefix
from apl_guard.trainer import minifaces
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.evaluate.asking import ask_for_anything, ask_for_people
from apl_guard.trainer.evaluate.inactivity import distances
from apl_guard.trainer.evaluate.scores import identity_figures
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.model import unets
from apl_guard.trainer.model.pipeline import open_pipe
from apl_guard.trainer.train import train

RECIPE = minifaces.WEIGHTS / "prefix" / "config.yaml"


def kept(ids: Tensor) -> Tensor:
    """The position of each token, shape (B, L), where what is behind a prefix stands as if there were none.

    Example:
        >>> kept(torch.tensor([[0, -1, -2, 5, 6, 9], [0, 5, 6, 9, 9, 9]])).tolist()
        [[0, 1, 2, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    """
    is_prefix = ids < 0
    N = is_prefix.sum(1, keepdim=True)  # (B, 1)
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return torch.where(is_prefix | (is_prefix.cumsum(1) < N), place, place - N)


def embed_in_place(text_encoder: Any, ids: Tensor, P: Tensor | None = None) -> Tensor:
    """Run a text encoder on rows whose text keeps its positions, shape (B, L, D)."""
    if P is None:
        hidden: Tensor = text_encoder(ids)[0]
        return hidden
    with injected(text_encoder, P):
        hidden = text_encoder(ids, position_ids=kept(ids))[0]
    return hidden


def drawn_from(pipe: Any, embed: Callable[[Sequence[str]], Tensor]) -> Callable[..., Any]:
    """A call like that of the pipe, with prompt embeds of another make."""

    def call(texts: Sequence[str], **options: Any) -> Any:
        with torch.no_grad():
            return pipe(prompt_embeds=embed(texts), **options)

    return call


def moved_up(pipe: Any, n: int) -> Callable[[Sequence[str]], Tensor]:
    """The text at the positions that it has behind n vectors, without them; the last n + 1 paddings share one."""

    def embed(texts: Sequence[str]) -> Tensor:
        ids = tokenize_with_prefix(pipe.tokenizer, texts, 0)
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        moved = torch.where(positions > 0, positions + n, positions).clamp(max=ids.shape[1] - 1)
        hidden: Tensor = pipe.text_encoder(ids, position_ids=moved)[0]
        return hidden

    return embed


def beside_kept_text(pipe: Any, P: Tensor) -> Callable[[Sequence[str]], Tensor]:
    """The vectors P, (N, D), in front of texts that keep their positions."""

    def embed(texts: Sequence[str]) -> Tensor:
        return embed_in_place(pipe.text_encoder, tokenize_with_prefix(pipe.tokenizer, texts, len(P)), P)

    return embed


def behind_a_prefix(pipe: Any, P: Tensor) -> Callable[[Sequence[str]], Tensor]:
    """The vectors P, (N, D), in front of texts, as the guard puts them."""

    def embed(texts: Sequence[str]) -> Tensor:
        with injected(pipe.text_encoder, P):
            hidden: Tensor = pipe.text_encoder(tokenize_with_prefix(pipe.tokenizer, texts, len(P)))[0]
        return hidden

    return embed


def drawn_late(pipe: Any, P: Tensor, steps: int) -> Callable[..., Any]:
    """A call like that of the pipe: the first steps of the bare prompt, all others with the vectors P, (N, D)."""
    bare = drawn_from(pipe, moved_up(pipe, 0))
    guarded = behind_a_prefix(pipe, P)

    def call(texts: Sequence[str], **options: Any) -> Any:
        with torch.no_grad():
            late = guarded(texts)  # (B, L, D)

        def exchange(_pipe: Any, step: int, _t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            if step + 1 != steps:
                return {}
            both = tensors["prompt_embeds"]  # (2B, L, D): of the negative prompts, then of the prompts
            return {"prompt_embeds": torch.cat([both[: -len(late)], late])}

        names = ["prompt_embeds"]
        return bare(texts, callback_on_step_end=exchange, callback_on_step_end_tensor_inputs=names, **options)

    return call


def compare(setting: Setting, calls: dict[str, Callable[..., Any]]) -> None:
    """Distances of prompts that name nobody over those of four fifths of the steps, and the leak of unseen people."""
    texts = [one.text for one in ask_for_anything(setting)]
    people = ask_for_people(setting, "unseen")
    plain = setting.draw(setting.pipe, texts, "generic")
    fewer = replace(setting, steps=setting.steps * 4 // 5)
    beside = distances(setting, plain, fewer.draw(setting.pipe, texts, "generic"))
    for label, call in calls.items():
        apart = distances(setting, plain, setting.draw(call, texts, "generic"))
        ratios = {name: float(values.mean() / beside[name].mean()) for name, values in apart.items()}
        drawn = setting.draw_asked(call, people, "unseen")
        found = identity_figures(setting.judges, drawn, people)
        figures = [f"{name} {ratio:.1f} x" for name, ratio in ratios.items()]
        figures += [f"{name} {found[name]:.3f}" for name in ("leak_far_1e-3", "cosine_mean", "attribute_fidelity")]
        print(f"{label:40} {len(texts)} and {len(people)} pictures: {', '.join(figures)}", flush=True)


def main() -> None:
    """Learn if asked to, draw, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("moved", "learned", "late"))
    parser.add_argument("--output", type=Path, default=Path("build/positions"), help="where a learned prefix goes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="options of training")
    parser.add_argument("--people", type=int, default=10, help="of the 40 unseen ones, evenly picked")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of the pictures")
    asked = parser.parse_args()
    pipe = open_pipe("minifaces")
    setting = Setting.of(
        pipe,
        Prefix.load("minifaces"),
        minifaces.judges(),
        steps=asked.steps,
        people_limit=asked.people,
        folder=None,
        progress=False,
    )
    if asked.what == "moved":
        moved = drawn_from(pipe, moved_up(pipe, 10))
        compare(setting, {"moved up by ten, no prefix": moved, "the prefix that ships": setting.guard})
        return
    if asked.what == "late":
        P = setting.prefix.vectors["text_encoder"]
        compare(setting, {f"prefix after {steps} steps": drawn_late(pipe, P, steps) for steps in (2, 4)})
        return
    config = TrainConfig.load(RECIPE).with_overrides(asked.set)
    with patch.object(unets, "embed", embed_in_place):
        train(config, "minifaces", minifaces.identities_file(), None, asked.output)
    P = Prefix.load(asked.output).vectors["text_encoder"]
    compare(setting, {"beside text that keeps its positions": drawn_from(pipe, beside_kept_text(pipe, P))})


if __name__ == "__main__":
    main()
