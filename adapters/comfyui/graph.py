"""What a workflow of ComfyUI does, read off its graph, and how a prefix gets into it.

Each class of nodes stands in one table below: its texts are encoded, it carries content through a channel, or it
is harmless. A class in none of them is unknown, so a request with it is refused. Whether a text is a prompt or a
negative prompt follows from where its conditioning goes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from apl_guard.adapters.prompts.forms import canonical_forms
from apl_guard.adapters.prompts.syntax import CHUNK, pieces, read_comfyui
from apl_guard.errors import InvalidInput
from apl_guard.request import Channel

from .guidance import turns_guidance_round
from .links import ENDS, NOTHING_LEFT, Nodes, consumers_in, hides_link, link_in, roles_of, shown

__all__ = ["Graph", "channels_in", "read_graph", "with_prefix", "with_texts"]

_TEXTS = {
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": ("text_g", "text_l"),
    "CLIPTextEncodeSDXLRefiner": ("text",),
    "CLIPTextEncodeSD3": ("clip_l", "clip_g", "t5xxl"),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl"),
    "CLIPTextEncodePixArtAlpha": ("text",),
    "CLIPTextEncodeHunyuanDiT": ("bert", "mt5xl"),
}
_WHOLE = {"t5xxl", "mt5xl"}  # these text encoders take any length at once
_STRINGS = {"PrimitiveString": "value", "PrimitiveStringMultiline": "value"}
_CHANNELS = {
    "LoadImage": Channel.IMAGE,
    "LoadImageMask": Channel.IMAGE,
    "LoadImageOutput": Channel.IMAGE,
    "VAEEncode": Channel.IMAGE,
    "VAEEncodeTiled": Channel.IMAGE,
    "VAEEncodeForInpaint": Channel.IMAGE,
    "InpaintModelConditioning": Channel.IMAGE,
    "ControlNetLoader": Channel.IMAGE,
    "ControlNetApply": Channel.IMAGE,
    "ControlNetApplyAdvanced": Channel.IMAGE,
    "LoadLatent": Channel.LATENTS,
    "LoraLoader": Channel.ADAPTER_WEIGHTS,
    "LoraLoaderModelOnly": Channel.ADAPTER_WEIGHTS,
    "HypernetworkLoader": Channel.ADAPTER_WEIGHTS,
    "CLIPVisionLoader": Channel.IP_ADAPTER,
    "CLIPVisionEncode": Channel.IP_ADAPTER,
    "unCLIPConditioning": Channel.IP_ADAPTER,
    "StyleModelLoader": Channel.IP_ADAPTER,
    "StyleModelApply": Channel.IP_ADAPTER,
}
# Class → inputs that name files with a text encoder or a denoiser.
_MODELS = {
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CLIPLoader": ("clip_name",),
    "DualCLIPLoader": ("clip_name1", "clip_name2"),
    "TripleCLIPLoader": ("clip_name1", "clip_name2", "clip_name3"),
    "UNETLoader": ("unet_name",),
}
# Where a text encoder is read, counted from its end. Layers before these have seen less of the prefix.
_LAST_LAYER, _MOST_LAST_LAYERS = "CLIPSetLastLayer", 2
_HARMLESS = {
    "AlignYourStepsScheduler", "BasicScheduler", "BetaSamplingScheduler", "CLIPSetLastLayer", "ConditioningAverage",
    "ConditioningCombine", "ConditioningConcat", "ConditioningSetArea", "ConditioningSetAreaPercentage",
    "ConditioningSetAreaStrength", "ConditioningSetMask", "ConditioningSetTimestepRange", "EmptyFlux2LatentImage",
    "EmptyImage", "EmptyLatentImage", "EmptySD3LatentImage", "ExponentialScheduler", "FluxGuidance", "FreeU",
    "FreeU_V2",
    "ImageBlur", "ImageCrop", "ImageInvert", "ImageQuantize", "ImageScale", "ImageScaleBy", "ImageSharpen",
    "ImageUpscaleWithModel", "KSamplerSelect", "KarrasScheduler", "LatentBatch", "LatentBlend", "LatentComposite",
    "LatentCrop", "LatentFlip", "LatentFromBatch", "LatentRotate", "LatentUpscale", "LatentUpscaleBy",
    "ModelSamplingAuraFlow", "ModelSamplingContinuousEDM", "ModelSamplingDiscrete", "ModelSamplingFlux",
    "ModelSamplingSD3", "PerturbedAttentionGuidance", "PolyexponentialScheduler", "PreviewImage", "PrimitiveBoolean",
    "PrimitiveFloat", "PrimitiveInt", "RandomNoise", "RepeatLatentBatch", "RescaleCFG", "SDTurboScheduler",
    "SamplerCustomAdvanced", "SaveImage", "SolidMask", "SplitSigmas", "UpscaleModelLoader", "VAEDecode",
    "VAEDecodeTiled", "VAELoader",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a text stands: an input of a node that encodes it."""

    node: str
    field: str


@dataclass(frozen=True)
class Graph:
    """A workflow, read."""

    nodes: Nodes
    """Id → class and inputs, texts in the nodes that encode them."""
    prompts: tuple[Place, ...]
    negative_prompts: tuple[Place, ...]
    channels: frozenset[Channel]
    unknown: tuple[str, ...]

    def texts(self, places: tuple[Place, ...]) -> tuple[str, ...]:
        """What stands there."""
        return tuple(self.nodes[place.node]["inputs"][place.field] for place in places)


def read_graph(workflow: Any, models: frozenset[str], harmless: frozenset[str]) -> Graph:
    """Read a workflow.

    Args:
        workflow: In the API format, as parsed JSON.
        models: Files with text encoders and denoisers that it may use.
        harmless: Further classes that carry neither text nor pictures.

    Raises:
        InvalidInput: It is no workflow in the API format, or a text is no text.
    """
    nodes = _nodes(workflow)
    known = harmless | _HARMLESS | ENDS | {NOTHING_LEFT, *_TEXTS, *_STRINGS, *_MODELS, *_CHANNELS}
    kinds = {node["class_type"] for node in nodes.values()}
    unknown = {f"node class {kind}" for kind in kinds - known}
    channels: set[Channel] = set()
    places: list[Place] = []
    for name, node in nodes.items():
        kind, inputs = node["class_type"], node["inputs"]
        if kind in _CHANNELS:
            channels.add(_CHANNELS[kind])
        for field in _MODELS.get(kind, ()):
            if str(inputs.get(field)) not in models:
                unknown.add(f"{field} {inputs.get(field)}")
        # Below 1 a sampler draws what the negative prompt says.
        if kind in ENDS - {"BasicGuider"} and not _is_at_least_one(inputs.get("cfg")):
            channels.add(Channel.GUIDANCE)
        if kind == _LAST_LAYER and inputs.get("stop_at_clip_layer") not in range(-_MOST_LAST_LAYERS, 0):
            channels.add(Channel.ATTENTION)
        for field in _TEXTS.get(kind, ()):
            inputs[field] = _text(nodes, inputs.get(field), f"{shown(name)}.{field}", unknown)
            places.append(Place(name, field))
    consumers = consumers_in(nodes)
    roles = {place: roles_of(consumers, place.node) for place in places}
    prompts = tuple(place for place in places if roles[place] != {"negative"})
    for place in places:
        channels |= channels_in(nodes[place.node]["inputs"][place.field])
        if roles[place] == {"positive", "negative"}:
            # With the prefix in both, guidance would take away what it adds.
            channels.add(Channel.PROMPT_SYNTAX)
    channels |= {Channel.PROMPT} if prompts else set()
    channels |= {Channel.NEGATIVE_PROMPT} if len(prompts) < len(places) else set()
    negative = tuple(place for place in places if place not in prompts)
    if turns_guidance_round(nodes, with_negative=any(nodes[p.node]["inputs"][p.field] for p in negative)):
        channels.add(Channel.GUIDANCE)
    return Graph(nodes, prompts, negative, frozenset(channels), tuple(sorted(map(shown, unknown))))


def channels_in(text: str) -> frozenset[Channel]:
    """The channels that a text opens by its syntax, or that its canonical form opens."""
    return frozenset().union(*(read_comfyui(form).channels for form in canonical_forms(text)))


def with_texts(graph: Graph, places: tuple[Place, ...], texts: tuple[str, ...]) -> Graph:
    """The workflow with other texts in some places."""
    nodes = copy.deepcopy(graph.nodes)
    for place, text in zip(places, texts, strict=True):
        nodes[place.node]["inputs"][place.field] = text
    return replace(graph, nodes=nodes)


def with_prefix(graph: Graph, name: str, n: int, count: Callable[[str], int]) -> Nodes:
    """The nodes of the workflow, with an embedding in front of each chunk of each prompt.

    A text of several chunks becomes several nodes, whose conditionings are joined.

    Args:
        graph: The workflow.
        name: Name of the embedding.
        n: Its number of vectors.
        count: At most how many tokens a text has.

    Raises:
        PrefixNotApplied: A part of a prompt can be cut nowhere, so that it would leave its chunk.
    """
    nodes = copy.deepcopy(graph.nodes)
    for node in dict.fromkeys(place.node for place in graph.prompts):
        fields = [place.field for place in graph.prompts if place.node == node]
        cut = {field: _cut(nodes[node]["inputs"][field], field, n, count) for field in fields}
        for field, parts in cut.items():
            nodes[node]["inputs"][field] = _prefixed(name, parts[0])
        last = node
        for number in range(1, max(map(len, cut.values()))):
            further, joined = _free(nodes, f"{node}-{number}"), _free(nodes, f"{node}-{number}-joined")
            nodes[further] = copy.deepcopy(nodes[node])
            for field, parts in cut.items():
                nodes[further]["inputs"][field] = _prefixed(name, parts[number] if number < len(parts) else "")
            inputs = {"conditioning_to": [last, 0], "conditioning_from": [further, 0]}
            nodes[joined] = {"class_type": "ConditioningConcat", "inputs": inputs}
            last = joined
        if last != node:
            _reroute(nodes, graph.nodes, node, last)
    return nodes


def _prefixed(name: str, text: str) -> str:
    return f"embedding:{name} {text}".strip()


def _cut(text: str, field: str, n: int, count: Callable[[str], int]) -> list[str]:
    return [text] if field in _WHOLE else pieces(text, CHUNK - n, count) or [""]


def _reroute(nodes: Nodes, original: Mapping[str, Any], node: str, to: str) -> None:
    """Let everything that took a node's conditioning take the joined one."""
    for name in original:
        for field, value in nodes[name]["inputs"].items():
            if link_in(value) == (node, 0):
                nodes[name]["inputs"][field] = [to, 0]


def _free(nodes: Mapping[str, Any], name: str) -> str:
    while name in nodes:
        name += "x"
    return name


def _nodes(workflow: Any) -> Nodes:
    if isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list):
        raise InvalidInput("found the format of the editor; expected the one of `Export (API)`", where="workflow")
    if not isinstance(workflow, dict) or not workflow:
        raise InvalidInput("expected nodes by their id, in the API format", where="workflow")
    found: Nodes = {}
    for name, node in workflow.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise InvalidInput("expected a node with class_type and inputs", where=f"workflow.{shown(name)}")
        if not isinstance(node.get("inputs", {}), dict):
            raise InvalidInput("expected inputs by name", where=f"workflow.{shown(name)}.inputs")
        found[name] = {"class_type": node["class_type"], "inputs": dict(node.get("inputs", {}))}
    for name, node in found.items():
        for field, value in node["inputs"].items():
            where = f"workflow.{shown(name)}.inputs.{shown(field)}"
            if hides_link(value):
                what = "found a link within a value, which the server may follow; expected the link itself"
                raise InvalidInput(what, where=where)
            if (link := link_in(value)) and link[0] not in found:
                raise InvalidInput("links to a node that is not there", where=where)
    return found


def _text(nodes: Nodes, value: Any, where: str, unknown: set[str]) -> str:
    """The text of an input, also where it stands in a node of its own."""
    link = link_in(value)
    if link is not None:
        kind = nodes[link[0]]["class_type"]
        if kind not in _STRINGS:
            unknown.add(f"text of node class {kind}")
            return ""
        value = nodes[link[0]]["inputs"].get(_STRINGS[kind])
    if not isinstance(value, str):
        raise InvalidInput(f"found {type(value).__name__}; expected a text", where=f"workflow.{where}")
    return value


def _is_at_least_one(value: Any) -> bool:
    return isinstance(value, int | float) and value >= 1
