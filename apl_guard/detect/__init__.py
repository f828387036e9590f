"""Looks at the texts of a request, for what the rules of a policy ask about, and at the pictures that come out."""

from apl_guard.detect.detectors import Detectors

__all__ = ["Detectors"]
