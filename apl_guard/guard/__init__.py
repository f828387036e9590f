"""The guard, each of its calls, and the proof at start that it acts."""

from apl_guard.guard.guard import Guard, Guarded
from apl_guard.guard.leak_samples import LeakSample
from apl_guard.guard.selftest import SelfTest

__all__ = ["Guard", "Guarded", "LeakSample", "SelfTest"]
