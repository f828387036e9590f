"""The JSON Schema of policies against the reader: both take and refuse the same files."""

import copy
import json
import re

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apl_guard import Policy, PolicyInvalid
from apl_guard.policy.json_schema import json_schema

CHECKER = jsonschema.Draft202012Validator(json_schema())

WHOLE = {
    "apiVersion": "apl-guard/v1",
    "kind": "Policy",
    "metadata": {"name": "a", "version": 1, "description": "x", "owner": "o"},
    "spec": {
        "mode": "enforce",
        "rollout": {"percent": 10, "key": "tenant", "salt": "s"},
        "on_error": "block",
        "without_prefix": "rewrite",
        "output_check": "optional",
        "limits": {"characters": 10, "texts": 2},
        "prefix": {"match": "exact", "slots": ["text_encoder"], "digests": ["a" * 64]},
        "names": [
            {"id": "n", "neutral": "p", "people": [{"name": "Mara Voss", "aliases": ["x"], "neutral": "z"}]},
            {"id": "c", "role": "consenting", "file": "c.csv", "sha256": "b" * 64},
        ],
        "patterns": [{"id": "p", "regex": "x", "neutral": "y"}],
        "person": {"model": "m", "sha256": "c" * 64, "labels": ["PER"], "milliseconds": 5, "neutral": "x", "cache": 3},
        "rules": [
            {
                "id": "r1",
                "when": {
                    "channels": ["prompt"],
                    "models": ["*"],
                    "tenants": ["a"],
                    "routes": ["r"],
                    "share": {"percent": 1.5, "key": "request", "salt": ""},
                },
                "then": {"action": "anonymize", "prefix": "p", "strength": 0.5},
            },
            {
                "id": "r2",
                "when": {
                    "channels": ["prompt", "negative_prompt"],
                    "names": ["n"],
                    "patterns": ["p"],
                    "entities": ["person"],
                    "min_score": 0.3,
                },
                "then": {"action": "rewrite"},
            },
            {"id": "r3", "when": {"channels": ["latents"]}, "then": {"action": "block", "category": "likeness"}},
            {"id": "r4", "when": {"channels": ["image"]}, "then": {"action": "unsafe_allow"}},
            {"id": "r5", "when": {"channels": ["negative_prompt"]}, "then": {"action": "allow"}},
        ],
    },
    "tests": [
        {
            "name": "t",
            "given": {
                "prompt": "x",
                "negative_prompt": "y",
                "channels": ["latents"],
                "tenant": "a",
                "route": "r",
                "model": "m",
                "carries_prefix": True,
            },
            "expect": {"action": "block", "rule": "r3", "category": "likeness", "prompt": "x"},
        }
    ],
}
BETWEEN_PARTS = re.compile(
    "rules ask for|no rule asks for|two have the same|no rule protects prompts|there is no 'person'|"
    "needs 'names', 'patterns' or 'person'|expected printable characters|expected a public key"
)
"""What the reader alone can say."""

TEXTS = ["", "a", "A", "x" * 201, "x" * 1001, "a b", "prompt", "latents", "block", "allow", "rewrite", "anonymize"]
NUMBERS = [0, 1, -1, 1.5, 100, 100.5, 2**40]
OTHERS = [True, [], {}, ["a"], {"a": "b"}, ["prompt"], ["latents"], [["a"]], {"percent": 5}]
KEYS = [
    *("surprise", "names", "file", "people", "prefix", "strength", "category", "min_score", "entities", "share"),
    *("channels", "sha256", "tenants"),
]


def places(node, place=()):
    """Where values are."""
    if place:
        yield place
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, part in entries:
        yield from places(part, (*place, key))


def kin(value):
    """Values that YAML writes in the same way: a text is no number, though the reader would read `10` in quotes."""
    if isinstance(value, bool):
        return [True, False, *OTHERS[1:]]
    return [*(TEXTS if isinstance(value, str) else NUMBERS if isinstance(value, int | float) else []), *OTHERS[1:]]


def changed(choose):
    """A policy with one or two changes anywhere."""
    made = copy.deepcopy(WHOLE)
    for _ in range(choose.choice([1, 1, 2])):
        *way, last = choose.choice(list(places(made)))
        around = made
        for key in way:
            around = around[key]
        kind = choose.random()
        if kind < 0.5:
            around[last] = copy.deepcopy(choose.choice(kin(around[last])))
        elif kind < 0.8 or isinstance(around, list):
            del around[last]
        else:
            key = choose.choice(KEYS)
            around[key] = copy.deepcopy(
                choose.choice([0.5, "a", *OTHERS] if key in ("strength", "min_score") else ["a", *OTHERS])
            )
    return made


def refusal(policy):
    """What the reader says against a policy, if anything."""
    try:
        Policy.parse(json.dumps(policy).encode())
    except PolicyInvalid as error:
        return str(error)
    return None


def test_the_whole_policy_is_good():
    """Both take it, so that each change is what they differ about, if they do."""
    assert refusal(WHOLE) is None
    CHECKER.check_schema(CHECKER.schema)
    CHECKER.validate(WHOLE)


@given(st.randoms(use_true_random=False))
def test_both_take_and_refuse_the_same(choose):
    """Whatever is changed, but for what holds between the parts of a policy, which a schema cannot say."""
    policy = changed(choose)
    said, is_valid = refusal(policy), CHECKER.is_valid(policy)

    if is_valid:
        assert said is None or BETWEEN_PARTS.search(said), said
    else:
        assert said is not None, next(CHECKER.iter_errors(policy)).message


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "names", 0, "file"), "x.csv"),
        (("spec", "names", 0, "sha256"), "a" * 64),
        (("spec", "rules", 0, "when", "min_score"), 0.5),
        (("spec", "rules", 0, "then", "category"), "x"),
        (("spec", "rules", 2, "then", "strength"), 0.5),
        (("spec", "rules", 0, "when", "channels"), ["negative_prompt"]),
        (("spec", "rules", 4, "when", "channels"), ["latents"]),
        (("spec", "rules", 4, "then", "action"), "rewrite"),
        (("spec", "rules", 2, "when", "names"), ["n"]),
    ],
)
def test_what_holds_between_fields_is_in_the_schema(place, value):
    """An editor shows it before the reader does."""
    policy = copy.deepcopy(WHOLE)
    *way, last = place
    around = policy
    for key in way:
        around = around[key]
    around[last] = value

    assert refusal(policy) is not None
    assert not CHECKER.is_valid(policy)


def test_the_schema_speaks_to_who_writes_yaml():
    """No Python in what an editor shows, and defaults that it would take itself."""
    text = json.dumps(CHECKER.schema)
    assert ">>>" not in text
    assert "null" not in text
    for part in [CHECKER.schema, *CHECKER.schema["$defs"].values()]:
        for name, field in part.get("properties", {}).items():
            if "default" in field:
                checker = CHECKER.evolve(schema={**field, "$defs": CHECKER.schema["$defs"]})
                assert checker.is_valid(field["default"]), name
