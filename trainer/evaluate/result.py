"""The figures of an evaluation, as JSON and as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Pictures = npt.NDArray[np.uint8]
"""Shape (n, H, W, 3)."""
Figures = dict[str, Any]
"""Name → figure; beside each, under `NAME_ci`, its 95 % interval [low, high]."""
Arms = dict[str, Figures]
"""Arm → its figures."""

ROWS = (
    ("images", "images"),
    ("prefixed", "… with the prefix"),
    ("top1", "top-1"),
    ("gallery", "… among so many"),
    ("leak_far_1e-2", "leak at FAR 1e-2"),
    ("leak_far_1e-3", "leak at FAR 1e-3"),
    ("worst_leak_far_1e-3", "… of worst person"),
    ("worst_leak_far_1e-3_person", "… who that is"),
    ("cosine_mean", "cosine, mean"),
    ("cosine_max", "cosine, maximum"),
    ("faceless", "without a face"),
    ("face_ratio", "face ratio"),
    ("attribute_fidelity", "attributes kept"),
    ("scene_fidelity", "scene kept"),
    ("frechet", "Fréchet distance"),
    ("frechet_plain_vs_plain", "… of plain sets"),
    ("acc_erased", "listed identified"),
    ("acc_retained", "others identified"),
    ("h_c", "H_c"),
    ("feature_distance", "feature distance"),
    ("pixel_distance", "pixel distance"),
    ("structure_distance", "1 − SSIM"),
    ("feature_distance_over_fewer_steps", "feature distance ÷ fewer steps"),
    ("pixel_distance_over_fewer_steps", "pixel distance ÷ fewer steps"),
    ("structure_distance_over_fewer_steps", "(1 − SSIM) ÷ fewer steps"),
    ("feature_distance_over_other_sampler", "feature distance ÷ other sampler"),
    ("pixel_distance_over_other_sampler", "pixel distance ÷ other sampler"),
    ("structure_distance_over_other_sampler", "(1 − SSIM) ÷ other sampler"),
    ("clip_score", "CLIP score"),
)
"""Figure → its label, in the order in which they are shown."""
_WORST = "worst_leak_far_1e-3_person"
_NO_RATES = ("frechet", "cosine", "feature_", "pixel_", "structure_", "clip_", "h_c")
ARMS = ("plain", "neutral", "fewer_steps", "other_sampler", "gated", "guarded")
"""The order in which arms are shown; others follow."""
ATTACK = "attack "
"""What the names of the suites of attacks begin with."""


def is_rate(key: str) -> bool:
    """Whether a figure is a share, to be shown in per cent.

    Example:
        >>> is_rate("top1"), is_rate("frechet")
        (True, False)
    """
    return not key.startswith(_NO_RATES)


def arms_of(figures: Mapping[str, Figures]) -> list[str]:
    """The arms of a suite, in the order in which they are shown."""
    return [*(arm for arm in ARMS if arm in figures), *(arm for arm in figures if arm not in ARMS)]


def arm_label(arm: str) -> str:
    """What people read in place of the name of an arm.

    Example:
        >>> arm_label("fewer_steps"), arm_label("guarded_checked")
        ('fewer steps', 'guarded, checked')
    """
    return arm.replace("_checked", ", checked").replace("_", " ")


@dataclass(frozen=True)
class Asked:
    """What one picture should show."""

    text: str
    """The prompt with the name."""
    neutral_text: str
    """The prompt without it."""
    person: str | None
    """The name, or None in generic prompts."""
    attributes: Mapping[str, str]
    """What the neutral prompt keeps of the person; in generic prompts, everything that was asked for."""
    scene: Mapping[str, str]
    """What was asked for besides the person."""
    label: str = ""
    """Which picture it is, whatever else is drawn: seeds are made of it."""


def first_of_each(asked: Sequence[Asked]) -> list[int]:
    """The numbers of the first picture of each person and of each prompt that names nobody, in their order.

    What reports show is chosen so: nothing looks at a picture.

    Example:
        >>> first_of_each([Asked("a photo of Ada", "", "Ada", {}, {}), Asked("Ada", "", "Ada", {}, {}),
        ...                Asked("a red car", "", None, {}, {})])
        [0, 2]
    """
    first: dict[str, int] = {}
    for k, one in enumerate(asked):
        first.setdefault(one.person or one.text, k)
    return list(first.values())


@dataclass
class Album:
    """Pictures that a report may show."""

    images: dict[str, dict[str, Pictures]] = field(default_factory=dict)
    """Suite → arm → pictures; in one suite all arms are drawn from the same seeds."""
    asked: dict[str, list[Asked]] = field(default_factory=dict)
    """Suite → what each picture should show."""


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found."""

    suites: dict[str, dict[str, Figures]]
    """Suite → arm → figures."""
    settings: dict[str, Any] = field(default_factory=dict)
    """How it was done: what it takes to do it again."""
    images: dict[str, dict[str, Pictures]] = field(default_factory=dict, repr=False)
    """Suite → arm → pictures, where they were asked for."""
    asked: dict[str, list[Asked]] = field(default_factory=dict, repr=False)
    """Suite → what each picture should show, where pictures were asked for."""

    def to_json(self) -> str:
        """Everything but the pictures.

        Example:
            >>> EvalResult({"seen": {"plain": {"images": 4}}}).to_json().replace(chr(10), "").replace(" ", "")
            '{"suites":{"seen":{"plain":{"images":4}}},"settings":{}}'
        """
        return json.dumps({"suites": self.suites, "settings": self.settings}, indent=2)

    def to_table(self) -> str:
        """A table for people: one row a figure, one column an arm, intervals in brackets."""
        lines: list[str] = []
        suites, attacks = apart_from_attacks(self.suites)
        for suite, arms in suites.items():
            columns = arms_of(arms)
            rows = [[suite, *map(arm_label, columns)]]
            for key, label in ROWS:
                if any(key in arms[arm] for arm in columns):
                    rows.append([f"  {label}", *(show_figure(arms[arm], key) for arm in columns)])
            first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
            for head, *cells in rows:
                shown = (f"{cell:>{max(26, 2 + width)}}" for cell, width in zip(cells, widths, strict=True))
                lines.append(f"{head:{max(20, first)}}{''.join(shown)}")
            lines.append("")
        if attacks:
            columns = ["plain", "guarded", "guarded_checked"]
            lines.append(f"{'leak at FAR 1e-3':36}" + "".join(f"{arm_label(arm):>26}" for arm in columns))
            for name, leaks, counts in attack_rows(attacks, columns):
                lines.append(f"  {name:34}{''.join(f'{leak:>26}' for leak in leaks)}  {counts}".rstrip())
        return "\n".join(lines).rstrip()


def apart_from_attacks(suites: Mapping[str, Arms]) -> tuple[dict[str, Arms], dict[str, Arms]]:
    """The suites that are shown one by one, and those of attacks, which stand in one table."""
    attacks = {suite: arms for suite, arms in suites.items() if suite.startswith(ATTACK)}
    return {suite: arms for suite, arms in suites.items() if suite not in attacks}, attacks


def attack_rows(attacks: Mapping[str, Arms], columns: Sequence[str]) -> Iterator[tuple[str, list[str], str]]:
    """Each class of attacks: its name, the leak in some arms, and how many calls got no picture, or no prefix."""
    for suite, arms in attacks.items():
        guarded, checked = arms.get("guarded", {}), arms.get("guarded_checked", {})
        bare = guarded["images"] - guarded["prefixed"] if "prefixed" in guarded else 0
        numbers = {"refused": checked.get("refused"), "withheld": checked.get("withheld"), "without prefix": bare}
        counts = ", ".join(f"{number} {what}" for what, number in numbers.items() if number)
        yield suite.removeprefix(ATTACK), [show_figure(arms.get(arm, {}), "leak_far_1e-3") for arm in columns], counts


def show_figure(figures: Figures, key: str) -> str:
    """One figure with its interval, for people.

    Example:
        >>> show_figure({"top1": 0.125, "top1_ci": [0.04, 0.29]}, "top1")
        '12.5 % [4.0, 29.0]'
        >>> show_figure({"frechet": 1.234, "frechet_ci": [1.0, 1.5]}, "frechet")
        '1.23 [1.00, 1.50]'
        >>> show_figure({"cosine_mean": 0.051}, "cosine_mean")
        '0.051'
    """
    value = figures.get(key)
    if value is None or (key == _WORST and figures.get("worst_leak_far_1e-3") == 0):  # nobody is the worst of equals
        return "–"
    if isinstance(value, (int, str)):
        return str(value)
    interval = figures.get(f"{key}_ci")
    return show_share(value, interval) if is_rate(key) else show_number(value, interval, _digits(key, value))


def _digits(key: str, value: float) -> int:
    """How many digits of a number say something."""
    if key == "h_c" or "_over_" in key:
        return 2
    return 0 if abs(value) >= 100 else 2 if abs(value) >= 1 else 3


def show_share(value: float, interval: Sequence[float] | None = None) -> str:
    """A share in per cent, with its interval where there is one.

    Example:
        >>> show_share(0.125), show_share(0.125, [0.04, 0.29])
        ('12.5 %', '12.5 % [4.0, 29.0]')
    """
    text = f"{100 * value:.1f} %"
    return text if interval is None else f"{text} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def show_number(value: float, interval: Sequence[float] | None = None, digits: int = 2) -> str:
    """A number, with its interval where there is one.

    Example:
        >>> show_number(1.5, [-1, 2]), show_number(-0.001)
        ('1.50 [−1.00, 2.00]', '0.00')
    """
    shown = [f"{number:z.{digits}f}" for number in (value, *(interval or ()))]
    text = shown[0] if interval is None else f"{shown[0]} [{shown[1]}, {shown[2]}]"
    return text.replace("-", "−")
