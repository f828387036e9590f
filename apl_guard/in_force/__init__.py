"""The policy in force: proved by its own tests, read again when its files change, tried on calls of the past."""

from apl_guard.in_force.in_force import PolicyInForce

__all__ = ["PolicyInForce"]
