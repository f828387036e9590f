"""Draws things: generic prompts must have something to be about besides people."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

from PIL import Image, ImageDraw

from .faces import OVERSAMPLING, SIZE, Style
from .traits import COLOURS, RGB, jitter, shade

Draw = ImageDraw.ImageDraw
Drawer = Callable[[Draw, float, float, float, RGB, RGB], None]


def _ball(d: Draw, x: float, y: float, k: float, c: RGB, dark: RGB) -> None:
    d.ellipse([x - k, y - k, x + k, y + k], fill=c)
    d.ellipse([x - k * 0.5, y - k * 0.65, x - k * 0.1, y - k * 0.25], fill=(255, 255, 255))


def _cube(d: Draw, x: float, y: float, k: float, c: RGB, dark: RGB) -> None:
    d.rectangle([x - k, y - k * 0.5, x + k * 0.5, y + k], fill=c)
    d.polygon(
        [(x - k, y - k * 0.5), (x - k * 0.5, y - k), (x + k, y - k), (x + k * 0.5, y - k * 0.5)],
        fill=shade(c, 1.25),
    )
    d.polygon([(x + k * 0.5, y - k * 0.5), (x + k, y - k), (x + k, y + k * 0.5), (x + k * 0.5, y + k)], fill=dark)


def _star(d: Draw, x: float, y: float, k: float, c: RGB, dark: RGB) -> None:
    radii = (k * 1.1, k * 0.45)
    d.polygon(
        [
            (x + radii[i % 2] * math.sin(math.pi * i / 5), y - radii[i % 2] * math.cos(math.pi * i / 5))
            for i in range(10)
        ],
        fill=c,
    )


def _house(d: Draw, x: float, y: float, k: float, c: RGB, dark: RGB) -> None:
    d.rectangle([x - k * 0.8, y - k * 0.1, x + k * 0.8, y + k], fill=c)
    d.polygon([(x - k, y - k * 0.1), (x, y - k), (x + k, y - k * 0.1)], fill=dark)
    d.rectangle([x - k * 0.2, y + k * 0.35, x + k * 0.2, y + k], fill=(92, 62, 42))


def _tree(d: Draw, x: float, y: float, k: float, c: RGB, dark: RGB) -> None:
    d.rectangle([x - k * 0.16, y, x + k * 0.16, y + k], fill=(100, 70, 40))
    d.ellipse([x - k * 0.85, y - k, x + k * 0.85, y + k * 0.45], fill=c)


def _car(d: Draw, x: float, y: float, k: float, c: RGB, dark: RGB) -> None:
    d.rounded_rectangle([x - k, y - k * 0.1, x + k, y + k * 0.5], radius=int(k * 0.15), fill=c)
    d.polygon(
        [
            (x - k * 0.65, y - k * 0.1),
            (x - k * 0.35, y - k * 0.65),
            (x + k * 0.4, y - k * 0.65),
            (x + k * 0.7, y - k * 0.1),
        ],
        fill=dark,
    )
    for s in (-1, 1):
        d.ellipse(
            [x + s * k * 0.55 - k * 0.25, y + k * 0.28, x + s * k * 0.55 + k * 0.25, y + k * 0.78],
            fill=(28, 28, 30),
        )


def _flower(d: Draw, x: float, y: float, k: float, c: RGB, dark: RGB) -> None:
    d.line([(x, y), (x, y + k)], fill=(40, 120, 50), width=int(k * 0.14))
    for i in range(6):
        px, py = x + k * 0.5 * math.cos(math.pi * i / 3), y - k * 0.3 + k * 0.5 * math.sin(math.pi * i / 3)
        d.ellipse([px - k * 0.34, py - k * 0.34, px + k * 0.34, py + k * 0.34], fill=c)
    d.ellipse([x - k * 0.28, y - k * 0.58, x + k * 0.28, y - k * 0.02], fill=(252, 232, 90))


def _fish(d: Draw, x: float, y: float, k: float, c: RGB, dark: RGB) -> None:
    d.polygon([(x + k * 0.35, y), (x + k, y - k * 0.55), (x + k, y + k * 0.55)], fill=dark)
    d.ellipse([x - k, y - k * 0.55, x + k * 0.6, y + k * 0.55], fill=c)
    d.ellipse([x - k * 0.7, y - k * 0.25, x - k * 0.45, y], fill=(12, 12, 12))


def _cup(d: Draw, x: float, y: float, k: float, c: RGB, dark: RGB) -> None:
    d.arc([x + k * 0.15, y - k * 0.4, x + k * 0.95, y + k * 0.4], -90, 90, fill=dark, width=int(k * 0.18))
    d.polygon(
        [
            (x - k * 0.75, y - k * 0.75),
            (x + k * 0.5, y - k * 0.75),
            (x + k * 0.32, y + k * 0.8),
            (x - k * 0.55, y + k * 0.8),
        ],
        fill=c,
    )


def _moon(d: Draw, x: float, y: float, k: float, c: RGB, dark: RGB) -> None:
    outer = [(x + k * math.cos(t), y + k * math.sin(t)) for t in (math.pi * (0.35 + 1.3 * i / 40) for i in range(41))]
    inner = [
        (x + k * 0.35 + k * 0.8 * math.cos(t), y + k * 0.8 * math.sin(t))
        for t in (math.pi * (1.72 - 1.44 * i / 40) for i in range(41))
    ]
    d.polygon(outer + inner, fill=c)


def _boat(d: Draw, x: float, y: float, k: float, c: RGB, dark: RGB) -> None:
    d.polygon(
        [
            (x - k, y + k * 0.3),
            (x + k, y + k * 0.3),
            (x + k * 0.6, y + k * 0.85),
            (x - k * 0.6, y + k * 0.85),
        ],
        fill=dark,
    )
    d.rectangle([x - k * 0.06, y - k, x + k * 0.06, y + k * 0.3], fill=(80, 60, 40))
    d.polygon([(x + k * 0.1, y - k), (x + k * 0.1, y + k * 0.15), (x + k * 0.85, y + k * 0.15)], fill=c)
    d.polygon([(x - k * 0.1, y - k * 0.7), (x - k * 0.1, y + k * 0.15), (x - k * 0.7, y + k * 0.15)], fill=c)


def _heart(d: Draw, x: float, y: float, k: float, c: RGB, dark: RGB) -> None:
    turns = (2 * math.pi * i / 48 for i in range(48))
    d.polygon(
        [
            (
                x + k * math.sin(t) ** 3,
                y - k / 16 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
            )
            for t in turns
        ],
        fill=c,
    )


def _mushroom(d: Draw, x: float, y: float, k: float, c: RGB, dark: RGB) -> None:
    d.rounded_rectangle([x - k * 0.28, y - k * 0.05, x + k * 0.28, y + k], radius=int(k * 0.15), fill=(240, 228, 206))
    d.chord([x - k, y - k * 0.95, x + k, y + k * 0.95], 180, 360, fill=c)
    for px, py in ((-0.45, -0.35), (0.05, -0.6), (0.5, -0.3)):
        d.ellipse(
            [x + k * (px - 0.13), y + k * (py - 0.13), x + k * (px + 0.13), y + k * (py + 0.13)],
            fill=(255, 255, 255),
        )


def _balloon(d: Draw, x: float, y: float, k: float, c: RGB, dark: RGB) -> None:
    d.line([(x, y + k * 0.4), (x + k * 0.1, y + k * 1.05)], fill=(60, 60, 60), width=max(2, int(k * 0.06)))
    d.ellipse([x - k * 0.7, y - k, x + k * 0.7, y + k * 0.45], fill=c)
    d.polygon([(x - k * 0.15, y + k * 0.6), (x + k * 0.15, y + k * 0.6), (x, y + k * 0.38)], fill=dark)


DRAWERS: Final[dict[str, Drawer]] = {
    "ball": _ball, "cube": _cube, "star": _star, "house": _house, "tree": _tree, "car": _car, "flower": _flower,
    "fish": _fish, "cup": _cup, "moon": _moon, "boat": _boat, "heart": _heart, "mushroom": _mushroom,
    "balloon": _balloon,
}  # fmt: skip
OBJECTS: Final = tuple(DRAWERS)


def draw_objects(
    things: tuple[tuple[str, str], ...], background: str, rng: random.Random, style: Style = "plain"
) -> Image.Image:
    """A 64×64 RGB picture of one or two (colour, object) pairs, from left to right."""
    side = SIZE * OVERSAMPLING
    canvas = Image.new("RGB", (side, side), jitter(COLOURS[background], rng, 6))
    pen = ImageDraw.Draw(canvas)
    for i, (colour, thing) in enumerate(things):
        scale = rng.uniform(0.29, 0.34) if len(things) == 1 else rng.uniform(0.19, 0.22)
        x = side * ((i + 0.5) / len(things) + rng.uniform(-0.015, 0.015))
        y = side * (0.5 + rng.uniform(-0.03, 0.03))
        paint = jitter(COLOURS[colour], rng, 6)
        if style == "inked":  # a dark copy, slightly larger, stands for the outline
            DRAWERS[thing](pen, x, y, side * scale * 1.09, (25, 20, 30), (25, 20, 30))
        DRAWERS[thing](pen, x, y, side * scale, paint, shade(paint, 0.62))
    return canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
