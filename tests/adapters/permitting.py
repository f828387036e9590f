"""Policies that permit what the default one blocks."""

from apl_guard import Policy


def allowing(*channels):
    """The default policy, with some channels permitted."""
    rules = [
        {"id": "prompts", "when": {"channels": ["prompt"]}, "then": {"action": "anonymize"}},
        {"id": "negative", "when": {"channels": ["negative_prompt"]}, "then": {"action": "allow"}},
        {"id": "open", "when": {"channels": list(channels)}, "then": {"action": "unsafe_allow"}},
    ]
    return Policy(
        apiVersion="apl-guard/v1", kind="Policy", metadata={"name": "open", "version": 1}, spec={"rules": rules}
    )
