"""What the tests of trusted prefixes share."""

import pytest

from apl_guard import Policy

try:
    import model_signing
except ImportError:
    model_signing = None

needs_signing = pytest.mark.skipif(model_signing is None, reason="apl-guard[signing] is not installed")


def with_prefix(**fields):
    """The default policy, accepting other prefixes."""
    content = Policy.load("anonymize_faces").model_dump(mode="json", exclude_unset=True)
    content["spec"]["prefix"] = fields
    return Policy.model_validate(content)


def draw(guard):
    """One picture, quickly."""
    return guard("a man", num_inference_steps=1)
