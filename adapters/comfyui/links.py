"""Where the outputs of the nodes of a workflow go, and so what a text is used as."""

from __future__ import annotations

import re
from graphlib import CycleError, TopologicalSorter
from typing import Any

from apl_guard.errors import InvalidInput

__all__ = ["ENDS", "NOTHING_LEFT", "Nodes", "consumers_in", "hides_link", "is_link", "link_in", "roles_of", "shown"]

Nodes = dict[str, dict[str, Any]]
"""Id → class and inputs."""
Consumers = dict[str, list[tuple[int, str, str, str]]]
"""Id of a node → what takes its outputs: which output, the node that takes it, its input and its class."""

# Where conditionings end: they steer the denoiser towards `positive` and away from `negative`.
ENDS = {"KSampler", "KSamplerAdvanced", "SamplerCustom", "CFGGuider", "BasicGuider"}
# Both conditionings go through: output 0 is the positive one, output 1 the negative one.
_PAIRED = {"ControlNetApplyAdvanced", "InpaintModelConditioning"}
NOTHING_LEFT = "ConditioningZeroOut"


def link_in(value: Any) -> tuple[str, int] | None:
    """The node and the number of its output that a value links to, or None where it is no link."""
    if not is_link(value):
        return None
    if type(value[1]) is not int or value[1] < 0:
        # The server counts a negative number from the end, so that one output would have two names.
        raise InvalidInput("expected links to outputs by their number, from 0", where="workflow")
    return (value[0], value[1])


def hides_link(value: Any) -> bool:
    """Whether a server that unwraps `{"__value__": …}` could find a link in a value where none is to be seen.

    Example:
        >>> hides_link({"__value__": ["4", 0]}), hides_link({"__value__": ["red", "blue"]})
        (True, False)
    """
    parts = value.values() if isinstance(value, dict) else ()
    return any(is_link(part) or hides_link(part) for part in parts)


def is_link(value: Any) -> bool:
    """Whether the server would follow a value to the output of another node."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int | float)
    )


def shown(name: str) -> str:
    """The id or the input of a node as an error may name it: whoever makes a workflow chooses them.

    Example:
        >>> shown("12:3"), shown("\x1b[2J")
        ('12:3', '??2J')
    """
    return re.sub(r"[^\w .:-]", "?", name)[:60]


def consumers_in(nodes: Nodes) -> Consumers:
    """Node → what takes one of its outputs: which output, the node, its input and its class.

    Raises:
        InvalidInput: Links go round in a circle.
    """
    found: Consumers = {}
    order: TopologicalSorter[str] = TopologicalSorter()
    for name, node in nodes.items():
        for field, value in node["inputs"].items():
            if (link := link_in(value)) is not None:
                found.setdefault(link[0], []).append((link[1], name, field, node["class_type"]))
                order.add(name, link[0])
    try:
        order.prepare()
    except CycleError as error:
        where = f"workflow.{shown(error.args[1][0])}"
        raise InvalidInput("the links of the workflow go round in a circle", where=where) from error
    return found


def roles_of(consumers: Consumers, node: str) -> set[str]:
    """What the conditioning of a node is used as: positive, negative, or both."""
    found: set[str] = set()
    seen: set[tuple[str, int | None, bool]] = set()
    # A node, which of its outputs (None for any), and whether the way there sets the conditioning to zero.
    waiting: list[tuple[str, int | None, bool]] = [(node, None, False)]
    while waiting:
        name, output, is_zero = here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        for slot, consumer, field, kind in consumers.get(name, ()):
            if output not in (None, slot):
                continue
            if kind not in ENDS:
                through = (1 if field == "negative" else 0) if kind in _PAIRED else None
                waiting.append((consumer, through, is_zero or kind == NOTHING_LEFT))
            elif field != "negative":
                found.add("positive")  # zero or not: of some text encoders a part is not set to zero
            elif not is_zero:
                found.add("negative")
    return found
