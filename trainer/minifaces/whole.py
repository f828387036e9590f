"""What takes hours to make is whole in its place or absent, and whatever libraries raise as they write is one error."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from apl_guard.errors import StorageFailed
from apl_guard.storage import write_file

__all__ = ["whole", "write_torch", "writing"]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file or a folder that shall get the name `path` at the end of the block, and not before.

    Yields:
        A path beside it, where nothing is left of a folder that a killed process had begun.

    Raises:
        StorageFailed: Something could not be written.
    """
    partial = path.with_name(f".{path.name}.partial{path.suffix}")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(path):
        yield partial
        partial.rename(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """One error for all that libraries raise when a model cannot be written.

    Raises:
        StorageFailed: Something could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise StorageFailed(f"cannot be kept ({reason}); free some space or choose another place", path=path) from error


def write_torch(path: Path, content: object) -> None:
    """Write what `torch.load` reads: all of it, or what was there before.

    Raises:
        StorageFailed: It could not be written, such as on a full disk, where `torch.save` has no error of its own.
    """
    stream = io.BytesIO()
    torch.save(content, stream)
    write_file(path, stream.getvalue())
