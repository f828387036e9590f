"""Embedding files in torch's pickle format, converted by another process.

Unpickling runs what the file says. So this process never does it: a child of limited time and memory, with
nothing of ours loaded, reads the file with a reader that knows tensors only, and hands back safetensors, which
are read like any other file from a stranger.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from apl_guard.errors import InvalidInput, PrefixInvalid
from apl_guard.prefix.tensorfile import read_file

__all__ = ["convert_pickle", "is_pickle"]

_MAX_PICKLE_BYTES = 16 << 20
# A back-stop for a machine that stands still; what the process may use is limited in the process.
_SECONDS = 600
_REASONS = {
    10: "holds something other than tensors",
    11: "holds no embedding that is known: expected one entry of 'string_to_param', or tensors by name",
    12: "its tensors are not matrices of at most 64 × 8192 floats",
    13: "needs more memory than an embedding may",
}


def is_pickle(content: bytes) -> bool:
    """Whether this looks like a file of `torch.save`, old or new.

    Example:
        >>> is_pickle(b"PK..."), is_pickle(bytes(8) + b"{}")
        (True, False)
    """
    # Safetensors begin with the length of their header. If that is 128, say, the first byte is that of a pickle.
    is_safetensors = content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8
    return content.startswith((b"PK", b"\x80")) and not is_safetensors


def convert_pickle(path: Path) -> bytes:
    """Convert a `.pt`, `.bin` or `.ckpt` embedding to safetensors, in a process of its own.

    Args:
        path: The file: that of the paper's authors, of AUTOMATIC1111, or of an older diffusers.

    Returns:
        The content of a safetensors file with the tensors alone.

    Raises:
        PrefixInvalid: It is no such file, holds code, or costs more time or memory than it may.
        InvalidInput: This system cannot limit what a process may use.
    """
    if importlib.util.find_spec("resource") is None:
        raise InvalidInput("can be converted on Linux and macOS only, where its process can be limited", where=path)
    content = read_file(path, limit=_MAX_PICKLE_BYTES)
    child = Path(__file__).with_name("_unpickle.py")
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    with tempfile.TemporaryDirectory(prefix="apl-guard-") as place:
        output = Path(place, "out.safetensors")
        try:
            # -I: neither the environment nor the current folder can put modules in its way.
            ended = subprocess.run(
                [sys.executable, "-I", str(child), str(output)],
                input=content,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=kept | {"OMP_NUM_THREADS": "1"},
                cwd=place,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PrefixInvalid(f"was not converted in {_SECONDS} seconds", where=path) from error
        if ended.returncode != 0:
            reason = _REASONS.get(ended.returncode, f"its converter ended with {ended.returncode}")
            raise PrefixInvalid(f"cannot be converted: {reason}", where=path)
        return read_file(output, follow_links=False)
