"""The card of a prefix: what it is, how it was made, how well it did, and how to use it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from apl_guard.prefix import PrefixMetadata
from apl_guard.trainer.config import TrainConfig
from apl_guard.trainer.train.result import TrainResult


@dataclass(frozen=True)
class Card:
    """What the card says."""

    config: TrainConfig
    result: TrainResult
    metadata: PrefixMetadata
    prompts: tuple[str, ...]
    people: int


def write_card(card: Card) -> str:
    """Write the card as Markdown."""
    result, metadata = card.result, card.metadata
    measurement = result.measurement
    held = card.config.people_held_aside(card.people)
    on = f"{held} people that it was not trained on" if held else "the people that it was trained on, new noise"
    changed = card.config.diff(TrainConfig())
    options = "\n".join(f"| `{name}` | {mine} | {default} |" for name, (mine, default) in changed.items())
    prompts = "\n".join(f"{k}. {prompt}" for k, prompt in enumerate(card.prompts, 1))
    fingerprints = "\n".join(f"| `{slot}` | {metadata.n} × {metadata.widths[slot]} | `{f.key}` |"
                             for slot, f in metadata.fingerprints.items())  # fmt: skip
    encoders = "text encoder" if len(metadata.widths) == 1 else "text encoders"
    return f"""# {metadata.name}

{metadata.n} learned vectors that stand in front of every prompt and keep the model from drawing a named
person. They work with every model that has the {encoders} below, and with no other.

| slot | shape | text encoder |
|---|---|---|
{fingerprints}

## Use

```python
from apl_guard import Guard

guard = Guard(pipe, policy="anonymize_faces", prefix="PATH/TO/THIS/FOLDER")
```

## Figures

Measured at step {result.step} of {result.steps} on {on}; d is the mean squared difference of what the model says.

| | |
|---|---|
| identity gap closed, 1 − d(name with prefix, neutral) / d(name, neutral) | {100 * measurement.gap_closed:.1f} % |
| generic drift, d(generic with prefix, generic) / d(generic, empty) | {100 * measurement.generic_drift:.1f} % |

They say how the prefix acts inside the model. Whether people are recognised in the images is another
question: `apl-guard eval` answers it.

## Before and after

Above without the prefix, below with it, same seeds.

![before and after](before_and_after.png)

{prompts}

## Training

{card.people - held} people, {result.steps} steps, {result.seconds / 60:.1f} minutes. All options are in
`config.yaml` (digest `{metadata.config_digest[:12]}`), the course of the loss is in `history.jsonl`.
What differs from the defaults:

| option | here | default |
|---|---|---|
{options or "| – | | |"}
"""


def training_seconds(prefix: Path) -> float | None:
    """How long training took, by the card of a prefix; None where there is no card, or it does not say.

    Args:
        prefix: The prefix folder, or the file in it.
    """
    folder = prefix if prefix.is_dir() else prefix.parent
    try:
        found = re.search(r" people, \d+ steps, (\d+\.\d) minutes\.", (folder / "card.md").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return None if found is None else 60 * float(found[1])
