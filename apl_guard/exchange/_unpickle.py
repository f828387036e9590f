"""Run as a script by `pickled`: reads a pickle from standard input, writes safetensors to the file named.

Exit codes: see `pickled`. It imports nothing of apl-guard, so that there is nothing here for a file to reach.
"""

import io
import os
import resource
import sys
from typing import Any

MEMORY = 256 << 20
CPU_SECONDS = 4
FILE_BYTES = 8 << 20


def limit(memory: bool) -> None:
    """Give up, for good, what reading an embedding does not need."""
    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: used + CPU_SECONDS,
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_NOFILE: 32,
    }
    if memory and os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", encoding="ascii") as stream:
            pages = int(stream.read().split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + MEMORY
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


def find_tensors(loaded: Any) -> dict[str, Any]:
    """The vectors in what others call an embedding."""
    if isinstance(loaded, dict) and "string_to_param" in loaded:
        loaded = loaded["string_to_param"]
        if not hasattr(loaded, "items") or len(loaded) != 1:
            sys.exit(11)
        return {"emb_params": next(iter(loaded.values()))}
    if not isinstance(loaded, dict) or not 1 <= len(loaded) <= 8 or not all(isinstance(key, str) for key in loaded):
        sys.exit(11)
    return {"emb_params": next(iter(loaded.values()))} if len(loaded) == 1 else loaded


def main() -> None:
    import torch
    from safetensors.torch import save
    from torch import nn

    content = sys.stdin.buffer.read()
    limit(memory=True)
    try:
        with torch.serialization.safe_globals([nn.ParameterDict, set]):
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        sys.exit(13)
    except Exception as error:
        sys.exit(13 if "memory" in str(error) else 10)
    tensors = find_tensors(loaded)
    for tensor in tensors.values():
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2 or not tensor.is_floating_point():
            sys.exit(12)
        if not (1 <= tensor.shape[0] <= 64 and 1 <= tensor.shape[1] <= 8192) or tensor.is_sparse:
            sys.exit(12)
    written = save({key: tensor.detach().float().contiguous().clone() for key, tensor in tensors.items()})
    with open(sys.argv[1], "wb") as stream:
        stream.write(written)


if __name__ == "__main__":
    main()
