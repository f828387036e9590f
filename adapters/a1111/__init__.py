"""AUTOMATIC1111's web UI and Forge."""

from .adapter import A1111, A1111Adapter, A1111Images

__all__ = ["A1111", "A1111Adapter", "A1111Images"]
