"""Reads YAML that may be hostile into plain dictionaries, lists and strings, with the line of every value.

A policy needs no anchors, no tags and no deep nesting, and each of them has been used against readers of YAML.
So they are refused, as is a key that appears twice, of which YAML would silently keep the last. Every scalar
stays the text that stands in the file: `no` is not False and `010` is not 8; the schema says what it must be.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, Union

import yaml

from apl_guard.errors import PolicyInvalid

__all__ = ["MAX_BYTES", "MAX_DEPTH", "Node", "Place", "Tree", "read_tree"]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20

Node: TypeAlias = Union[str, "list[Node]", "dict[str, Node]"]
Place: TypeAlias = "tuple[str | int, ...]"
"""The keys and positions that lead from the root to a value."""


@dataclass(frozen=True)
class Tree:
    """The content of a file."""

    root: Node
    lines: dict[Place, int]
    """Place → line, counted from 1."""


@dataclass
class _Open:
    """A list or mapping that has begun and not ended."""

    node: list[Node] | dict[str, Node]
    place: Place
    key: str | None = None
    """The key that waits for its value."""

    def next_place(self) -> Place:
        """Where the next value will stand."""
        return (*self.place, len(self.node) if isinstance(self.node, list) else self.key or "")


@dataclass
class _Builder:
    """Builds the tree from the parser's events, without recursion, so that no input exhausts the stack."""

    open: list[_Open] = field(default_factory=list)
    lines: dict[Place, int] = field(default_factory=dict)
    root: Node | None = None

    def take(self, event: yaml.Event) -> None:
        """Take the next event.

        Raises:
            _RefusedError: It is nothing that a policy needs.
        """
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _RefusedError("anchors and aliases are not allowed; write the value out", line)
        if getattr(event, "tag", None) is not None:
            raise _RefusedError("tags are not allowed; write the plain value", line)
        if isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            raise _RefusedError("a second document begins; expected one policy in a file", line)
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event.value, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._begin([], line)
        elif isinstance(event, yaml.MappingStartEvent):
            self._begin({}, line)
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            self.open.pop()

    def _scalar(self, value: str, line: int) -> None:
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise _RefusedError("half of a surrogate pair is no text", line)
        parent = self.open[-1] if self.open else None
        if parent is not None and isinstance(parent.node, dict) and parent.key is None:
            if value in parent.node:
                raise _RefusedError("a key appears twice", line)
            parent.key = value
            self.lines[parent.next_place()] = line
            return
        self._add(value, line)

    def _begin(self, node: list[Node] | dict[str, Node], line: int) -> None:
        if len(self.open) >= MAX_DEPTH:
            raise _RefusedError(f"nested deeper than {MAX_DEPTH}", line)
        place = self._add(node, line)
        self.open.append(_Open(node, place))

    def _add(self, value: Node, line: int) -> Place:
        if not self.open:
            self.root = value
            self.lines[()] = line
            return ()
        parent = self.open[-1]
        place = parent.next_place()
        self.lines.setdefault(place, line)
        if isinstance(parent.node, list):
            parent.node.append(value)
        elif parent.key is None:
            raise _RefusedError("a key must be a text", line)
        else:
            parent.node[parent.key] = value
            parent.key = None
        return place


class _RefusedError(Exception):
    """The file holds something that a policy does not need."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def read_tree(content: bytes, where: str | Path) -> Tree:
    """Read one document.

    Args:
        content: The bytes of the file, of any origin.
        where: What to call it in messages.

    Raises:
        PolicyInvalid: It is too large, not YAML, or holds what no policy needs. The message names the line.

    Example:
        >>> read_tree(b"mode: off", "policy.yaml").root
        {'mode': 'off'}
        >>> read_tree(b"a: &x 1", "policy.yaml")
        Traceback (most recent call last):
        apl_guard.errors.PolicyInvalid: policy.yaml: line 1: anchors and aliases are not allowed; write the value out
    """
    if len(content) > MAX_BYTES:
        raise PolicyInvalid(f"{len(content)} bytes; a policy has at most {MAX_BYTES}", where=where)
    builder = _Builder()
    try:
        for event in yaml.parse(content, yaml.BaseLoader):
            builder.take(event)
    except _RefusedError as refused:
        raise PolicyInvalid(f"line {refused.line}: {refused}", where=where) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # ValueError: a reader of PyYAML lets those of chr() and int() through.
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        place = "" if line is None else f"line {line + 1}: "
        problem = getattr(error, "problem", None) or "not readable as text; expected UTF-8"
        raise PolicyInvalid(f"{place}not valid YAML: {problem}", where=where) from None
    if builder.root is None:
        raise PolicyInvalid("empty; expected a policy", where=where)
    return Tree(builder.root, builder.lines)
