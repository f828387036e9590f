"""YAML that people write: nothing in it is dropped in silence, and whatever is wrong with it is one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from apl_guard.errors import InvalidInput
from apl_guard.storage import read_regular

__all__ = ["NotYamlError", "read_yaml", "read_yaml_file"]

_MAX_BYTES = 256 << 20


class NotYamlError(ValueError):
    """The text is not YAML, or a key appears twice in it. The message is one line and quotes nothing."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that appears twice, of which YAML keeps the last: with it, people would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            said = (key.tag, str(key.value))
            if said in seen:
                raise yaml.constructor.ConstructorError(None, None, "a key appears twice", key.start_mark)
            seen.add(said)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """Read one document.

    Raises:
        NotYamlError: It is none.

    Example:
        >>> read_yaml("lr: 0.1")
        {'lr': 0.1}
        >>> read_yaml("lr: 0.1\\nlr: 0.2")
        Traceback (most recent call last):
        apl_guard.trainer.plain_yaml.NotYamlError: line 2: a key appears twice
    """
    try:
        return yaml.load(text, _Loader)  # a safe one
    except RecursionError as error:
        raise NotYamlError("nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f"line {mark.line + 1}: "
        raise NotYamlError(f"{place}{error.problem or 'not readable'}") from error
    except (yaml.YAMLError, ValueError, OverflowError, AttributeError) as error:
        # What PyYAML lets through of a date that does not exist, or of a tag on what it does not fit.
        raise NotYamlError("a value cannot be read, such as a date that does not exist") from error


def read_yaml_file(path: Path, wrong: type[InvalidInput], what: str) -> Any:
    """Read a file of one document.

    Args:
        path: The file.
        wrong: The error that says what is wrong with it.
        what: What it calls the file.

    Raises:
        InvalidInput: The file is missing, or is no YAML.
    """
    try:
        return read_yaml(read_regular(path, _MAX_BYTES).decode("utf-8"))
    except NotYamlError as error:
        raise wrong(f"{what} is not valid YAML: {error}", where=path) from error
    except (OSError, UnicodeDecodeError) as error:
        raise wrong(f"{what} cannot be read: {error}", where=path) from error
