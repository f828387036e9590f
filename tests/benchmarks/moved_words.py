"""Does a pseudo-word that was found behind one prefix work behind another, which the searcher never saw?

    python -m tests.benchmarks.moved_words minifaces prefixes/hardened      # ten minutes on one core

If it did not, a platform could keep its prefix to itself, or take another for each call. The search is that of
`apl-guard attack --search embedding`, behind the first prefix; then the same words are drawn behind each.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from apl_guard.prefix import Prefix
from apl_guard.trainer import minifaces
from apl_guard.trainer.attacks.curve import EACH
from apl_guard.trainer.attacks.search import make_search
from apl_guard.trainer.attacks.sides import sides_of
from apl_guard.trainer.evaluate.scores import clopper_pearson
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.model.pipeline import frozen, open_pipe


def main() -> None:
    """Search behind the first, draw behind all, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefixes", nargs="+", metavar="PREFIX", help="folder or name; the search is behind the first")
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--steps", type=int, default=160)
    asked = parser.parse_args()
    prefixes = {name: Prefix.load(name) for name in asked.prefixes}
    first = asked.prefixes[0]
    setting = Setting.of(
        open_pipe("minifaces"), prefixes[first], minifaces.judges(), steps=20, folder=None, progress=False
    )
    (side,) = (side for side in sides_of(setting, prefixes, asked.people) if side.name == first)
    with frozen(side.pipe):
        search = make_search("embedding", side.pipe, prefixes[first].vectors["text_encoder"], side.wanted(0), seed=0)
        while search.steps < asked.steps:
            search.step()
    shows = side.shows(setting.judges, seed=0)
    person = np.repeat(np.arange(asked.people), EACH)
    labels = [f"{name}:{k}" for name in side.names for k in range(EACH)]
    print(f"words found in {asked.steps} steps behind {first}, people of {asked.people} back behind")
    for name, prefix in prefixes.items():
        search._vectors = prefix.vectors["text_encoder"]
        with torch.no_grad():
            embeds = search.prompt_embeds()
        pictures = setting.draw(
            lambda numbers, embeds=embeds, **options: side.pipe(
                prompt_embeds=embeds[[int(m) for m in numbers]], **options
            ),
            [str(m) for m in person],
            "search",
            labels=labels,
        )
        back = int(shows(pictures, person).reshape(-1, EACH).any(1).sum())
        low, high = clopper_pearson(back, asked.people)
        print(f"  {name:40} {back:>3}  [{100 * low:.0f}, {100 * high:.0f}] %", flush=True)


if __name__ == "__main__":
    main()
