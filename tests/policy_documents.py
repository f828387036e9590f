"""Policies of tests: what a file holds around the rules, said once."""

from apl_guard import Policy


def document(*rules, tests=None, **spec):
    """The content of a policy file."""
    parts = {} if tests is None else {"tests": tests}
    return {
        "apiVersion": "apl-guard/v1",
        "kind": "Policy",
        "metadata": {"name": "p", "version": 1},
        "spec": {"rules": list(rules), **spec},
        **parts,
    }


def policy(*rules, **spec):
    """The policy of such a file."""
    return Policy.model_validate(document(*rules, **spec))
