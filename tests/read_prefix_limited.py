"""Read each file of a folder in a child whose resources are limited; print what came of it as JSON.

The kernel enforces the limits, so no clock is read: a child that needs more than one second of CPU time for
`REPEATS` reads is killed by SIGXCPU, one that needs more than `MEGABYTES` beyond what it started with fails.
"""

import json
import os
import resource
import sys
from pathlib import Path

from apl_guard import Prefix, PrefixInvalid

REPEATS = 20
MEGABYTES = 32


def read(file: Path) -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    memory = pages * resource.getpagesize() + (MEGABYTES << 20)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 1, int(used) + 2))
    for _ in range(REPEATS):
        try:
            Prefix.load(file)
        except PrefixInvalid:
            continue
        return 1
    return 2


outcomes = {}
if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).iterdir()):
        child = os.fork()
        if child == 0:
            code = 3
            try:
                code = read(path)
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status)
        outcomes[path.name] = {1: "read", 2: "refused"}.get(ended, f"ended with {ended}")
    print(json.dumps(outcomes))
