"""Does what a guard counts in service agree with the truth? python -m tests.benchmarks.leaks_in_service [--people 40]

On the reference world the truth is known: the judge knows all faces by name. Half of the prompts name somebody, half
nobody; the guard is told neither. Prefixes from one that hides nobody to the one that ships are measured both ways.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from apl_guard import Guard, LeakWatch, Prefix
from apl_guard.detect.gallery import Embeddings
from apl_guard.detect.leaks import Seen
from apl_guard.detect.pictures import Picture
from apl_guard.encoder.token_embedding import token_embedding
from apl_guard.trainer import minifaces
from apl_guard.trainer.evaluate.scores import recognised
from apl_guard.trainer.model.pipeline import open_pipe

FAR = "far_1e-3"
EACH = 20
"""Prompts in one call."""


class Judge:
    """The judge of the reference world, as a recogniser."""

    name = "minifaces judge"

    def __call__(self, pictures: Sequence[Picture]) -> list[Embeddings]:
        """The face in each picture, shape (1, E), or none."""
        images, judges = np.stack(pictures), minifaces.judges()
        embeddings, has_face = judges.embed(images).numpy(), judges.has_face(images)
        return [embeddings[k : k + int(has_face[k])] for k in range(len(images))]


def between(pipe: Any, share: float) -> Prefix:
    """A prefix on the way from words that hide nobody (0) to the one that ships (1)."""
    ships = Prefix.load("minifaces")
    P = ships.vectors["text_encoder"]
    words = pipe.tokenizer("a photo of a picture of the image in an", add_special_tokens=False)["input_ids"]
    table = token_embedding(pipe.text_encoder).weight.detach().float()
    return Prefix({"text_encoder": (1 - share) * table[words[: ships.n]] + share * P}, ships.metadata)


def measure(pipe: Any, share: float, people: list[minifaces.Person], steps: int) -> str:
    """One row of the table: what the guard counts, and what is true."""
    watch = LeakWatch(Judge(), minifaces.judges().thresholds[FAR], share=1.0, keep=10_000, seconds=600)
    guard = Guard(pipe, prefix=between(pipe, share), leak_watch=watch)
    named = [minifaces.identity_prompts(person, 1, seed=0, held_out=True)[0].text for person in people]
    nameless = [prompt.text for prompt in minifaces.generic_prompts(len(people), seed=0, held_out=True)]
    options = {"num_inference_steps": steps, "guidance_scale": 3.0, "output_type": "np"}
    shown = 0
    for start in range(0, len(people), EACH):
        some = slice(start, start + EACH)
        images = (guard(named[some], **options).images * 255).round().astype(np.uint8)
        own, _ = recognised(minifaces.judges(), images, [person.name for person in people[some]])
        shown += int((own >= watch.threshold).sum())
    of_people = Counter(seen for sample in guard.measure_leaks() for seen in sample.seen)
    for start in range(0, len(people), EACH):
        guard(nameless[start : start + EACH], **options)
    of_nobody = Counter(seen for sample in guard.measure_leaks() for seen in sample.seen)
    counted = of_people + of_nobody
    known = sum(counted[seen] for seen in (Seen.LEAKED, Seen.HIDDEN, Seen.FACELESS))
    n, leaked = len(people), counted[Seen.LEAKED]
    return (
        f"| {share:.0%} | {leaked} of {known}, {leaked / known:.0%} | {shown} of {n}, {shown / n:.0%} | "
        f"{n - of_people[Seen.NOBODY]} of {n} | {n - of_nobody[Seen.NOBODY]} of {n} |"
    )


def main() -> None:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=40, help="of the 160, evenly picked")
    parser.add_argument("--steps", type=int, default=12, help="denoising steps")
    asked = parser.parse_args()
    pipe = open_pipe("minifaces")
    pipe.set_progress_bar_config(disable=True)
    known = minifaces.known_people()
    people = [known[k * len(known) // asked.people] for k in range(asked.people)]
    print("| prefix | leaks that the guard counts | pictures that show the person | people known | nameless known |")
    print("|---|---|---|---|---|")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        print(measure(pipe, share, people, asked.steps), flush=True)


if __name__ == "__main__":
    main()
