"""The bench: every peer on the same people, prompts and seeds, before the same judges."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from apl_guard.prefix import Prefix
from apl_guard.storage import make_folder, write_file
from apl_guard.trainer.bench.figures import people_figures
from apl_guard.trainer.bench.learned import Learned, learn_once
from apl_guard.trainer.evaluate.asking import ask_for_anything, ask_for_people
from apl_guard.trainer.evaluate.gated import h_c_figures
from apl_guard.trainer.evaluate.provenance import provenance
from apl_guard.trainer.evaluate.result import Asked, Figures, Pictures
from apl_guard.trainer.evaluate.scores import generic_figures
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.minifaces.judge import Judges
from apl_guard.trainer.model.pipeline import model_digest
from apl_guard.trainer.peers.ablation import Ablation
from apl_guard.trainer.peers.esd import ESD
from apl_guard.trainer.peers.negative import NegativePrompt
from apl_guard.trainer.peers.peer import Applied, Peer, Task
from apl_guard.trainer.peers.prefix import APL, Plain
from apl_guard.trainer.peers.sld import SLD
from apl_guard.trainer.peers.text_level import Block, Rewrite
from apl_guard.trainer.peers.uce import UCE

_TIMED = 8
"""Pictures in a timed call."""
_ROUNDS = 3


def all_peers(prefix: Prefix, seconds: float | None = None) -> tuple[Peer, ...]:
    """Every peer with its default options, the plain model first.

    Args:
        prefix: The prefix of this project.
        seconds: What its training took, where that is known.
    """
    return (
        Plain(), Block(), Rewrite(), NegativePrompt("list"), NegativePrompt("named"), SLD("list"), SLD("named"),
        UCE(), ESD(), Ablation(), APL(prefix, "listed", seconds), APL(prefix, seconds=seconds),
    )  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """The pictures of one peer for one suite."""

    pictures: Pictures
    asked: Sequence[Asked]
    """What each should show."""
    refused: npt.NDArray[np.bool_]
    """Where there is no picture, shape (n,)."""

    @classmethod
    def together(cls, parts: Sequence[Drawn]) -> Drawn:
        """Those of several models as one."""
        return cls(
            np.concatenate([part.pictures for part in parts]),
            [one for part in parts for one in part.asked],
            np.concatenate([part.refused for part in parts]),
        )


@dataclass(frozen=True)
class Elsewhere:
    """Models that others made of the one that was learned on; everything learned is tried on them as it is."""

    models: Sequence[tuple[Any, Sequence[Asked]]]
    """Pipes, each with what to draw with it."""
    judges: Judges
    """Who looks at the pictures."""


@dataclass(frozen=True)
class BenchResult:
    """What a bench found."""

    rows: dict[str, Figures]
    """Peer → figures; a figure that was not measured is absent."""
    settings: dict[str, Any]
    """How it was done."""
    drawn: dict[str, dict[str, Drawn]] = field(default_factory=dict, repr=False)
    """Peer → suite → pictures."""

    def to_json(self) -> str:
        """Everything but the pictures.

        Example:
            >>> BenchResult({"plain": {"leak_seen": 0.9}}, {}).to_json().split()
            ['{', '"settings":', '{},', '"rows":', '{', '"plain":', '{', '"leak_seen":', '0.9', '}', '}', '}']
        """
        return json.dumps({"settings": self.settings, "rows": self.rows}, indent=2, ensure_ascii=False)


def run_bench(
    setting: Setting,
    peers: Sequence[Peer],
    task: Task,
    folder: Path,
    elsewhere: Mapping[str, Elsewhere] = MappingProxyType({}),
) -> BenchResult:
    """Let every peer learn, draw the same prompts with each, and let the judges look.

    A bench that was stopped goes on where it was: what was learned is kept in the folder, pictures where the setting
    keeps them.

    Args:
        setting: Model, judges, prompts, seeds, steps and guidance.
        peers: The plain model first: times are ratios to its.
        task: Whom to hide.
        folder: Where what peers learn and how long they took is kept.
        elsewhere: Name → models that others made; the column `leak_NAME` is of the pictures of all of them.

    Raises:
        PrefixNotFound: The prefix belongs to another text encoder.
        StorageFailed: Something cannot be kept.
    """
    make_folder(folder)
    learned = {peer.key: learn_once(peer, setting.pipe, task, folder, setting.progress) for peer in peers}
    applied = {peer.key: peer.apply(setting.pipe, learned[peer.key].files) for peer in peers}
    suites = {
        "seen": ask_for_people(setting, "seen"),
        "unseen": ask_for_people(setting, "unseen"),
        "generic": ask_for_anything(setting),
    }
    fresh = setting.draw_asked(setting.pipe, suites["generic"], "fresh generic")
    drawn: dict[str, dict[str, Drawn]] = {}
    rows: dict[str, Figures] = {}
    for peer in peers:
        key, of = peer.key, learned[peer.key]
        drawn[key] = {suite: _draw(setting, applied[key], of, peer, suite, asked) for suite, asked in suites.items()}
        rows[key] = _figures(setting, drawn[key], fresh) | _cost(peer, of)
    for name, others in elsewhere.items():
        parts: dict[str, list[Drawn]] = {peer.key: [] for peer in peers}
        for pipe, asked in others.models:
            there = setting.on(pipe)
            for peer in peers:
                of = learned[peer.key]
                parts[peer.key].append(_draw(there, peer.apply(pipe, of.files), of, peer, name, asked))
        for key, several in parts.items():
            rows[key] |= _take(_of_people(others.judges, Drawn.together(several)), leak=f"leak_{name}")
    texts = [one.text for one in suites["seen"]][:_TIMED]
    times = time_calls(setting, peers, applied, texts, folder / "times.json", learned)
    for key, own in times.items():
        rows[key] |= own
    return BenchResult(rows, _settings(setting, task, peers), drawn)


def _draw(
    setting: Setting, applied: Applied, learned: Learned, peer: Peer, suite: str, asked: Sequence[Asked]
) -> Drawn:
    # Options may change how files are put to work.
    decides = f"{peer.key} {learned.digest} {json.dumps(dict(peer.settings), sort_keys=True)}"
    pictures = setting.draw_asked(applied.call, asked, suite, decides=decides)
    return Drawn(pictures, asked, np.array([applied.refuses(one.text) for one in asked], dtype=np.bool_))


def _of_people(judges: Judges, drawn: Drawn) -> Figures:
    return people_figures(judges, drawn.pictures, drawn.asked, drawn.refused)


def _figures(setting: Setting, drawn: dict[str, Drawn], fresh: Pictures) -> Figures:
    """One row of the table, without what it cost."""
    erased, retained = (_of_people(setting.judges, drawn[split]) for split in ("seen", "unseen"))
    generic = drawn["generic"]
    anything = generic_figures(setting.judges, generic.pictures, fresh, generic.asked, setting.seed)
    row: Figures = {"images": {suite: len(one.asked) for suite, one in drawn.items()}}
    row |= _take(erased, leak="leak_seen", accuracy="accuracy_seen", refused="refused")
    row |= _take(retained, leak="leak_unseen", accuracy="accuracy_unseen")
    row |= h_c_figures(erased["recognised"], retained["recognised"])
    row |= _take(erased, face_ratio="face_ratio", attribute_fidelity="attributes_kept", scene_fidelity="scene_fidelity")
    row |= _take(anything, attribute_fidelity="generic_fidelity", frechet="frechet")
    return row


def _take(figures: Figures, **names: str) -> Figures:
    """Some figures with their intervals, under other names."""
    return {
        new + part: figures[old + part] for old, new in names.items() for part in ("", "_ci") if old + part in figures
    }


def _cost(peer: Peer, learned: Learned) -> Figures:
    shipped: Figures = {"shipped_bytes": learned.shipped}
    if isinstance(peer, APL):  # trained beforehand, on whatever machine that was
        return shipped if peer.seconds is None else shipped | {"training_seconds": peer.seconds}
    return shipped | {"training_seconds": learned.seconds, "training_core_seconds": learned.core_seconds}


def time_calls(
    setting: Setting,
    peers: Sequence[Peer],
    applied: dict[str, Applied],
    texts: list[str],
    path: Path,
    learned: dict[str, Learned],
) -> dict[str, Figures]:
    """Seconds for a picture with each peer, in turns, so that a busy machine is as busy for all of them.

    Returns:
        Peer → median seconds, and the median over rounds of the ratio to the first peer.
    """
    device = str(setting.pipe.unet.device)
    digests = {key: one.digest for key, one in learned.items()}
    options = {peer.key: dict(peer.settings) for peer in peers}
    # The texts, too: fewer pictures in a call take longer each, and what a peer does depends on the prompt.
    computed = [device, torch.__version__, torch.get_num_threads(), setting.steps, setting.guidance]
    binding = [model_digest(setting.pipe), computed, texts, options, digests]
    known = _read_json(path)
    if known.get("binding") == binding:
        return dict(known["times"])
    seconds: dict[str, list[float]] = {key: [] for key in applied}
    bar = tqdm(total=(1 + _ROUNDS) * len(applied), desc="timing", unit="call", disable=not setting.progress)
    with bar:
        for count in range(1 + _ROUNDS):
            for key, at_work in applied.items():
                began = time.perf_counter()
                at_work.call(
                    texts,
                    # The first round is to warm up.
                    num_inference_steps=setting.steps if count else 1,
                    guidance_scale=setting.guidance,
                    generator=[torch.Generator("cpu").manual_seed(k) for k in range(len(texts))],
                    output_type="np",
                )
                if count:
                    seconds[key].append((time.perf_counter() - began) / len(texts))
                bar.update()
    first = next(iter(seconds.values()))
    times: dict[str, Figures] = {
        key: {
            "seconds_per_image": statistics.median(own),
            "time_ratio": statistics.median(a / b for a, b in zip(own, first, strict=True)),
        }
        for key, own in seconds.items()
    }
    write_file(path, json.dumps({"binding": binding, "times": times}, indent=2).encode())
    return times


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _settings(setting: Setting, task: Task, peers: Sequence[Peer]) -> dict[str, Any]:
    return {
        "listed": len(task.names),
        "neutral": task.neutral,
        "images_per_person": setting.images_per_person,
        "people_limit": setting.people_limit,
        "seed": setting.seed,
        "steps": setting.steps,
        "guidance": setting.guidance,
        **provenance(setting),
        "threads": torch.get_num_threads(),
        "peers": {peer.key: {"source": peer.source, **peer.settings} for peer in peers},
    }
