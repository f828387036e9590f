"""Would a part of the prefix behind the user's text raise the bar? What is asked before anybody builds it.

    python -m tests.benchmarks.placement states                        # a minute
    python -m tests.benchmarks.placement learned 10+0 5+5 10+5         # about five minutes each on one core

`states` exchanges what the text encoder says: vectors behind the text reach the end token and the padding alone, for
CLIP's text encoder looks backwards only, so these are all the states that they could make neutral. `learned F+K` learns
F vectors in front of the text and K right behind it by the shipped recipe, and lets the search for pseudo-words loose
on them.

Letters: B rows, L places in a row, N = F + K vectors, D width.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from apl_guard.adapters.inject import embed, encode_prompts, tokenize_with_prefix
from apl_guard.prefix import Prefix
from apl_guard.trainer import minifaces
from apl_guard.trainer.attacks.search import make_search
from apl_guard.trainer.attacks.sides import wanted_of
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.data.examples import draw_batch, prepare
from apl_guard.trainer.data.identities import load_identities
from apl_guard.trainer.evaluate.asking import ask_for_people, people_of
from apl_guard.trainer.evaluate.scores import identity_figures
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.model.number_format import precision_of
from apl_guard.trainer.model.pipeline import frozen, open_pipe
from apl_guard.trainer.model.unets import predict
from apl_guard.trainer.train.loss import apl_loss
from apl_guard.trainer.train.schedule import half_weights, lr_factor
from apl_guard.trainer.train.start import start_vectors
from apl_guard.trainer.train.targets import Targets

RECIPE = minifaces.WEIGHTS / "prefix" / "config.yaml"


def behind(ids: Tensor, n: int, k: int, end: int) -> Tensor:
    """Move the last k of n sentinels to right before the end token, shape (B, L).

    Example:
        >>> behind(torch.tensor([[0, -1, -2, -3, 5, 6, 9, 9]]), n=3, k=1, end=9).tolist()
        [[0, -1, -2, 5, 6, -3, 9, 9]]
    """
    front = 1 + n - k
    rows: list[Tensor] = []
    for row in ids:
        stop = int((row == end).int().argmax())
        rows.append(torch.cat([row[:front], row[1 + n : stop], row[front : 1 + n], row[stop:]]))
    return torch.stack(rows)


def draw_and_judge(setting: Setting, prompt_embeds: Tensor, label: str) -> None:
    """Draw the people of a setting from ready-made prompt embeds, shape (B, L, D), and print what the judge sees."""
    asked = ask_for_people(setting, "seen")

    def call(numbers: Sequence[str], **options: Any) -> Any:
        return setting.pipe(prompt_embeds=prompt_embeds[[int(k) for k in numbers]], **options)

    numbers = [str(k) for k in range(len(asked))]
    pictures = setting.draw(call, numbers, "seen", labels=[one.label for one in asked])
    found = identity_figures(setting.judges, pictures, asked)
    figures = ", ".join(f"{name} {found[name]:.3f}" for name in ("leak_far_1e-3", "cosine_mean", "face_ratio"))
    print(f"{label:44} {len(asked)} pictures: {figures}", flush=True)


@torch.no_grad()
def states(setting: Setting) -> None:
    """Which states show who it is: those of the text, or those of the end token and the padding?"""
    pipe = setting.pipe
    asked = ask_for_people(setting, "seen")
    texts, neutrals = [one.text for one in asked], [one.neutral_text for one in asked]
    named, neutral = (encode_prompts(pipe.text_encoder, pipe.tokenizer, some) for some in (texts, neutrals))
    end = pipe.tokenizer.eos_token_id
    stops, neutral_stops = (
        (tokenize_with_prefix(pipe.tokenizer, some, 0) == end).int().argmax(1) for some in (texts, neutrals)
    )
    assert (neutral_stops <= stops).all(), "the neutral row has text where the named one has none"
    is_behind = (torch.arange(named.shape[1]) >= stops[:, None]).unsqueeze(-1)  # (B, L, 1)
    draw_and_judge(setting, named, "as named")
    draw_and_judge(setting, torch.where(is_behind, neutral, named), "text as named, end and padding as neutral")
    draw_and_judge(setting, torch.where(is_behind, named, neutral), "text as neutral, end and padding as named")


def learn(pipe: Any, n: int, k: int, steps: int) -> Tensor:
    """Learn n vectors, the last k of them behind the text, by the shipped recipe, shape (N, D)."""
    config = TrainConfig.load(RECIPE).model_copy(update={"n_vectors": n, "steps": steps})
    dtype, end = precision_of(pipe.unet.device, config.precision), pipe.tokenizer.eos_token_id
    data = prepare(pipe, config, load_identities(minifaces.identities_file()), minifaces.captions(448, seed=0))
    targets = Targets(pipe, data, config, keep=False)
    identity, generic = (
        behind(tokenize_with_prefix(pipe.tokenizer, half.prompts, n), n, k, end)
        for half in (data.identity, data.generic)
    )
    P = start_vectors(pipe, config).requires_grad_(True)
    adam = torch.optim.Adam([P], lr=config.lr)
    for step in range(steps):
        done = step / steps
        adam.param_groups[0]["lr"] = config.lr * lr_factor(config, step, done)
        batch = draw_batch(data, config, step, len(pipe.scheduler.alphas_cumprod))
        z_t, eps_neutral = targets(batch, step)
        ids = torch.cat([identity[batch.identity], generic[batch.generic]])
        eps = predict(pipe.unet, z_t, batch.t, embed(pipe.text_encoder, ids, P), dtype)
        adam.zero_grad(set_to_none=True)
        torch.autograd.backward(apl_loss(eps, eps_neutral, config.eta, half_weights(config, done)))
        adam.step()
    return P.detach()


def learned(setting: Setting, n: int, k: int, steps: int, search_steps: int, label: str) -> None:
    """Leak of ordinary prompts, and of the search for pseudo-words in place of the name."""
    pipe = setting.pipe
    end = pipe.tokenizer.eos_token_id
    with frozen(pipe):
        P = learn(pipe, n, k, steps)
        texts = [one.text for one in ask_for_people(setting, "seen")]
        rows = behind(tokenize_with_prefix(pipe.tokenizer, texts, n), n, k, end)
        with torch.no_grad():
            ordinary = embed(pipe.text_encoder, rows, P)
        wanted = wanted_of(pipe, people_of(setting, "seen"), setting.seed)
        search = make_search("embedding", pipe, P, wanted, seed=setting.seed)
        search._rows = behind(search._rows, n, k, end)
    draw_and_judge(setting, ordinary, f"{label}, ordinary prompts")
    for checkpoint in sorted({0, search_steps // 4, search_steps // 2, search_steps}):
        with frozen(pipe):
            while search.steps < checkpoint:
                search.step()
        with torch.no_grad():
            found = search.prompt_embeds().repeat_interleave(setting.images_per_person, dim=0)
        draw_and_judge(setting, found, f"{label}, search, {checkpoint} steps, loss {search.loss(seed=0):.4f}")


def main() -> None:
    """Draw, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("states", "learned"))
    parser.add_argument("placements", nargs="*", metavar="F+K", help="vectors in front of the text and behind it")
    parser.add_argument("--people", type=int, default=24, help="of the 120 seen ones, evenly picked")
    parser.add_argument("--images-per-person", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12, help="denoising steps of the pictures")
    parser.add_argument("--train-steps", type=int, default=260)
    parser.add_argument("--search-steps", type=int, default=40)
    asked = parser.parse_args()
    setting = Setting.of(
        open_pipe("minifaces"),
        Prefix.load("minifaces"),
        minifaces.judges(),
        steps=asked.steps,
        images_per_person=asked.images_per_person,
        people_limit=asked.people,
        folder=None,
        progress=False,
    )
    if asked.what == "states":
        states(setting)
    for placement in asked.placements:
        front, k = (int(part) for part in placement.split("+"))
        learned(setting, front + k, k, asked.train_steps, asked.search_steps, placement)


if __name__ == "__main__":
    main()
