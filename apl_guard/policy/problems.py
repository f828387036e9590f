"""What is wrong with a policy file, said so that its author can mend it: line, field, what is expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from apl_guard.policy.yaml_tree import Place, Tree
from apl_guard.printable import printable

__all__ = ["describe", "did_you_mean"]

_LONGEST = 120
"""Characters of what is quoted."""


def describe(error: ValidationError, model: type[BaseModel], tree: Tree) -> str:
    """Say what is wrong, the first fault of a file first.

    Args:
        error: What pydantic found.
        model: The model that was to be made.
        tree: What the file holds.
    """
    found = error.errors()
    within = {fault["loc"][:depth] for fault in found for depth in range(len(fault["loc"]))}
    # Of a list of which an entry is wrong, pydantic also says that it is too short.
    found = [fault for fault in found if fault["type"] != "too_short" or fault["loc"] not in within]
    faults = sorted((_line(tree, fault["loc"]), _describe(fault, model, tree)) for fault in found)
    return "; ".join(f"line {line}: {text}" for line, text in faults[:5])


def _describe(fault: Any, model: type[BaseModel], tree: Tree) -> str:
    field = ".".join(str(part) for part in fault["loc"]) or "policy"
    field = printable(field, _LONGEST)
    if fault["type"] == "extra_forbidden":
        known = _fields_at(fault["loc"][:-1], model)
        expected = did_you_mean(str(fault["loc"][-1]), known) or f"; expected {', '.join(known)}"
        return f"unknown key '{field}'{expected}"
    if fault["type"] == "missing":
        return f"'{field}' is missing"
    if fault["type"] in ("enum", "literal_error"):
        found = _value_at(tree, fault["loc"])
        expected = fault["ctx"]["expected"]
        words = [word.strip(" '") for word in expected.replace(" or ", ", ").split(",")]
        return f"'{field}' is {printable(repr(found), _LONGEST)}; expected {expected}{did_you_mean(str(found), words)}"
    if fault["type"] in _EXPECTED:
        found = _value_at(tree, fault["loc"])
        return f"'{field}' is {printable(_shown(found), _LONGEST)}; expected {_EXPECTED[fault['type']]}"
    return f"'{field}': {_in_plain_words(fault['msg'])}"


_EXPECTED = {
    "tuple_type": "a list, such as [one, another]",
    "too_short": "at least one entry",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "string_type": "a text",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
}
"""Kind of a fault, as pydantic calls it → what was expected, in the words of somebody who writes YAML."""


def _shown(found: Any) -> str:
    if isinstance(found, str):
        return repr(found)
    return ("a mapping" if isinstance(found, dict) else "a list") if found else repr(found)


def _in_plain_words(message: str) -> str:
    message = message.removeprefix("Value error, ")
    for said, meant in (("Input should be ", "expected a value "), ("String should ", "expected a text that should ")):
        message = meant + message.removeprefix(said) if message.startswith(said) else message
    return message


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """The end of a message: the word that was meant, or nothing."""
    # What switches protection off is spelt longer than one would write it first.
    known = list(known)
    meant = [word for word in known if word == f"unsafe_{found}"]
    meant = (
        meant or difflib.get_close_matches(found, known, n=1) or difflib.get_close_matches(found.lower(), known, n=1)
    )
    return f"; did you mean '{meant[0]}'?" if meant else ""


def _fields_at(place: Place, model: type[BaseModel]) -> list[str]:
    """The keys that a mapping at this place may have."""
    found: list[type[BaseModel]] = [model]
    for part in place:
        if isinstance(part, str) and any(part in each.model_fields for each in found):
            annotations = [each.model_fields[part].annotation for each in found if part in each.model_fields]
            found = [inner for annotation in annotations for inner in _models_in(annotation)]
    return sorted({name for each in found for name in each.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in _models_in(inner)]


def _line(tree: Tree, place: Place) -> int:
    """The line of the value, or of the nearest thing around it that is in the file."""
    while place and place not in tree.lines:
        place = place[:-1]
    return tree.lines.get(place, 1)


def _value_at(tree: Tree, place: Place) -> Any:
    node: Any = tree.root
    for part in place:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            return node
    return node
