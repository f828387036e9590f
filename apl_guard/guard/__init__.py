"""The guard, each of its calls, and the proof at start that it acts."""

from apl_guard.guard.guard import Guard, Guarded

__all__ = ["Guard", "Guarded"]
