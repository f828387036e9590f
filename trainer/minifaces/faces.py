"""Draws a face: large, with plain shapes, then reduced with antialiasing to 64×64."""

from __future__ import annotations

import math
import random
from typing import Final, Literal, NamedTuple

from PIL import Image, ImageDraw

from .traits import COLOURS, HAIR_COLOURS, RGB, SKINS, Identity, Look, hue, jitter, shade

Style = Literal["plain", "inked"]
SIZE: Final = 64
OVERSAMPLING: Final = 4


def between(low: float, high: float, t: float) -> float:
    """The number a fraction ``t`` of the way from low to high."""
    return low + (high - low) * t


class _Pen:
    """PIL's drawing calls in units of the head, with an outline where the style asks for one."""

    def __init__(self, canvas: Image.Image, unit: float, style: Style) -> None:
        self.draw = ImageDraw.Draw(canvas)
        self.unit = unit
        self.ink: RGB | None = (25, 20, 30) if style == "inked" else None
        self.ink_width = max(2, int(unit * 0.016))

    def width(self, w: float) -> int:
        return max(2, int(w * self.unit))

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: RGB, *, ink: bool = False) -> None:
        outline = self.ink if ink else None
        self.draw.ellipse([x - rx, y - ry, x + rx, y + ry], fill=fill, outline=outline, width=self.ink_width)

    def polygon(self, points: list[tuple[float, float]], fill: RGB, *, ink: bool = False) -> None:
        self.draw.polygon(points, fill=fill)
        if ink and self.ink:
            self.draw.line([*points, points[0]], fill=self.ink, width=self.ink_width, joint="curve")


class _Head(NamedTuple):
    """Where the head is, half its width and height, and how square its jaw."""

    x: float
    y: float
    w: float
    h: float
    jaw: float

    def outline(self, angle: float, wider: float = 1.0, higher: float = 1.0) -> tuple[float, float]:
        """A point of it: an ellipse whose lower half narrows to a chin, or not, as the jaw says."""
        x, y = math.cos(angle), math.sin(angle)
        narrowing = 1 - (1 - self.jaw) * 0.42 * max(0.0, y) ** 1.2
        square = 1 + 0.12 * self.jaw * max(0.0, y) * (1 - abs(x))
        return self.x + self.w * wider * narrowing * x, self.y + self.h * higher * square * y


class _Eyes(NamedTuple):
    """How far each is from the middle of the face, how high up they are, and their radius."""

    x: float
    y: float
    r: float


def draw_face(identity: Identity, look: Look, rng: random.Random, style: Style = "plain") -> Image.Image:
    """A 64×64 RGB picture of somebody.

    ``rng`` gives what is neither identity nor look: place, size and tilt of the head, light on skin and cloth.
    """
    a, g = identity.attributes, identity.geometry
    side = SIZE * OVERSAMPLING
    background = jitter(COLOURS[look.background], rng, 6)
    canvas = Image.new("RGB", (side, side), background)
    cx = side * (0.5 + rng.uniform(-0.01, 0.01))
    cy = side * (0.47 + rng.uniform(-0.01, 0.01))
    k = side * rng.uniform(0.98, 1.03)
    pen = _Pen(canvas, k, style)

    skin = jitter(shade(SKINS[a.skin], between(0.9, 1.08, g.skin_tone)), rng, 4)
    shadow = shade(skin, 0.74)
    hair = shade(HAIR_COLOURS[a.hair_colour], between(0.78, 1.15, g.hair_tone))
    head = _Head(cx, cy, between(0.205, 0.325, g.face_width) * k, between(0.270, 0.365, g.face_height) * k, g.jaw)

    _body(pen, head, shadow, jitter(COLOURS[look.clothing], rng, 6))
    _back_hair(pen, head, identity, hair)
    ear = between(0.025, 0.075, g.ear_size) * k
    for s in (-1, 1):
        pen.ellipse(cx + s * (head.w + 0.1 * ear), cy + 0.05 * k, ear * 0.8, ear * 1.25, shadow, ink=True)
    pen.polygon([head.outline(2 * math.pi * i / 72) for i in range(72)], skin, ink=True)
    if g.blush > 0.55:
        rosy = tuple(int(0.62 * c + 0.38 * r) for c, r in zip(skin, (214, 70, 80), strict=True))
        for s in (-1, 1):
            pen.ellipse(cx + s * head.w * 0.62, cy + 0.10 * k, 0.055 * k, 0.04 * k, (rosy[0], rosy[1], rosy[2]))
    if a.beard == "beard":
        _beard(pen, head, hair)
    if a.hair_style != "bald":
        _fringe(pen, head, identity, hair)

    eye_y = cy + between(-0.085, 0.015, g.eye_height) * k
    eye_x = min(between(0.075, 0.165, g.eye_spacing) * k, head.w * 0.72)
    eyes = _Eyes(eye_x, eye_y, between(0.030, 0.060, g.eye_size) * k)
    _eyes(pen, head, eyes, identity, look, shade(hair, 0.62))
    nose_tip = eye_y + between(0.06, 0.155, g.nose_length) * k
    nose_w = between(0.022, 0.066, g.nose_width) * k
    nose = [(cx - nose_w * 0.3, eye_y + 0.015 * k), (cx + nose_w * 0.3, eye_y + 0.015 * k)]
    nose += [(cx + nose_w, nose_tip), (cx - nose_w, nose_tip)]
    pen.polygon(nose, shade(skin, 0.87))
    pen.draw.line([(cx - nose_w, nose_tip), (cx + nose_w, nose_tip)], fill=shade(skin, 0.6), width=pen.width(0.014))

    mouth_y = max(nose_tip + 0.05 * k, cy + head.h * between(0.46, 0.70, g.mouth_height))
    _mouth(pen, (cx, mouth_y), identity, look, skin, hair)
    if a.glasses == "glasses":
        _glasses(pen, head, eyes)
    tilt = rng.uniform(-2, 2)
    canvas = canvas.rotate(tilt, resample=Image.Resampling.BILINEAR, fillcolor=background)
    return canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _body(pen: _Pen, head: _Head, neck: RGB, cloth: RGB) -> None:
    cx, cy, _, h, _ = head
    k = pen.unit
    shoulder = cy + h + 0.07 * k
    pen.draw.rectangle([cx - 0.09 * k, cy + h * 0.5, cx + 0.09 * k, shoulder + 0.1 * k], fill=neck)
    pen.ellipse(cx, shoulder + 0.4 * k, 0.44 * k, 0.4 * k, cloth, ink=True)


def _back_hair(pen: _Pen, head: _Head, who: Identity, hair: RGB) -> None:
    cx, cy, w, h, _ = head
    k, style, volume = pen.unit, who.attributes.hair_style, who.geometry.hair_volume
    lift = between(0.015, 0.085, volume) * k
    if style == "long":
        box = [cx - w - 0.3 * lift - 0.025 * k, cy - h - lift, cx + w + 0.3 * lift + 0.025 * k, cy + h * 1.2]
        pen.draw.rounded_rectangle(box, radius=int(0.2 * k), fill=hair, outline=pen.ink, width=pen.ink_width)
    elif style == "curly":
        curl = between(0.06, 0.10, volume) * k
        for degrees in range(-205, 26, 22):
            angle = math.radians(degrees)
            pen.ellipse(cx + math.cos(angle) * (w + 0.02 * k), cy - 0.06 * k + math.sin(angle) * h, curl, curl, hair)
    elif style in ("short", "spiky"):
        pen.ellipse(cx, cy - h * 0.30, w + 0.022 * k, h * 0.7 + lift * 0.8, hair, ink=True)
    if style == "spiky":
        reach = between(0.07, 0.15, volume) * k
        for i in range(7):
            angle = math.pi * (1.08 + 0.84 * i / 6)
            x, y = cx + (w + 0.01 * k) * math.cos(angle), cy + h * math.sin(angle)
            tip = (x + reach * math.cos(angle), y + reach * math.sin(angle))
            pen.polygon([(x - 0.05 * k, y + 0.03 * k), tip, (x + 0.05 * k, y + 0.03 * k)], hair)


def _fringe(pen: _Pen, head: _Head, who: Identity, hair: RGB) -> None:
    """Hair over the forehead, down to the hairline."""
    cx, cy, w, h, _ = head
    k = pen.unit
    depth = between(0.05, 0.17, who.geometry.hairline) * k
    arc = [head.outline(math.pi + math.pi * i / 48, 1.01, 1.02) for i in range(49)]
    front = [point for point in arc if point[1] < cy - h + depth]
    if len(front) > 2:
        pen.polygon(front, hair)
    if who.attributes.hair_style == "curly":
        curl = between(0.05, 0.075, who.geometry.hair_volume) * k
        for i in range(-2, 3):
            pen.ellipse(cx + i * w * 0.36, cy - h + depth * 0.6 + abs(i) * 0.018 * k, curl, curl * 0.8, hair)


def _beard(pen: _Pen, head: _Head, hair: RGB) -> None:
    lower = [head.outline(math.pi * i / 36) for i in range(37)]
    pen.polygon([point for point in lower if point[1] > head.y + head.h * 0.28], hair)


def _eyes(pen: _Pen, head: _Head, eyes: _Eyes, who: Identity, look: Look, brow: RGB) -> None:
    dx, y, r = eyes
    g = who.geometry
    wide = 1.35 if look.expression == "surprised" else 1.0
    iris = hue(g.eye_hue, 0.7, 0.6)
    openness = between(0.6, 1.15, g.eye_openness) * wide
    for s in (-1, 1):
        x = head.x + s * dx
        pen.ellipse(x, y, r * 1.25, r * openness, (250, 250, 250), ink=True)
        pen.ellipse(x, y, r * 0.66, min(r * 0.66, r * openness), iris)
        pen.ellipse(x, y, r * 0.28, r * 0.28, (10, 10, 12))
        brow_y = y - r * openness - between(0.012, 0.055, g.brow_gap) * pen.unit
        tilt = between(-0.55, 0.55, g.brow_tilt) * r - (0.3 * r if look.expression == "sad" else 0.0)
        ends = [(x - s * r * 1.2, brow_y + tilt), (x + s * r * 1.45, brow_y - tilt)]
        pen.draw.line(ends, fill=brow, width=pen.width(between(0.010, 0.036, g.brow_weight)))


def _mouth(pen: _Pen, place: tuple[float, float], who: Identity, look: Look, skin: RGB, hair: RGB) -> None:
    cx, y = place
    k, g, a = pen.unit, who.geometry, who.attributes
    w = between(0.080, 0.150, g.mouth_width) * k
    thick = pen.width(between(0.014, 0.036, g.mouth_weight))
    lip = (178, 52, 62) if a.sex == "woman" else shade(skin, 0.55)
    if a.beard == "beard":
        pen.ellipse(cx, y + 0.015 * k, w * 1.2, 0.065 * k, skin)
    if a.beard == "moustache":
        box = [cx - w * 1.1, y - 0.058 * k, cx + w * 1.1, y - 0.02 * k]
        pen.draw.rounded_rectangle(box, radius=int(0.015 * k) + 1, fill=hair)
    if look.expression == "smiling":
        pen.draw.chord(
            [cx - w, y - w * 0.75, cx + w, y + w * 0.55], 0, 180, fill=(250, 250, 248), outline=lip, width=thick
        )
    elif look.expression == "sad":
        pen.draw.arc([cx - w, y - w * 0.1, cx + w, y + w * 1.3], 190, 350, fill=lip, width=thick)
    elif look.expression == "surprised":
        pen.draw.ellipse(
            [cx - w * 0.5, y - w * 0.45, cx + w * 0.5, y + w * 0.7], fill=(90, 25, 30), outline=lip, width=thick
        )
    else:
        pen.draw.line([(cx - w, y), (cx + w, y)], fill=lip, width=thick)


def _glasses(pen: _Pen, head: _Head, eyes: _Eyes) -> None:
    cx, (dx, y, r) = head.x, eyes
    frame = (22, 22, 26)
    width = pen.width(0.018)
    lens = min(r * 1.9, dx * 0.92)
    for s in (-1, 1):
        x = cx + s * dx
        pen.draw.ellipse([x - lens, y - lens * 0.85, x + lens, y + lens * 0.85], outline=frame, width=width)
        pen.draw.line([(x + s * lens, y), (cx + s * head.w, y - 0.01 * r)], fill=frame, width=width)
    pen.draw.line([(cx - dx + lens, y), (cx + dx - lens, y)], fill=frame, width=width)
