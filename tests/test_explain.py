"""What `policy explain` says is what the guard does, whatever the policy."""

from hypothesis import given, settings
from hypothesis import strategies as st

from apl_guard import Guard, Policy, PolicyBlocked
from apl_guard.in_force import PolicyInForce
from apl_guard.request import Channel, GenerationRequest
from apl_guard.request.context import Context

NAMES = [
    {"id": "a", "people": [{"name": "Mara Voss", "neutral": "A"}]},
    {"id": "b", "people": [{"name": "Voss Kim", "neutral": "B"}, {"name": "Mara", "neutral": "M"}]},
]
PATTERNS = [{"id": "p", "regex": "(?i)cat|mara v", "neutral": "P"}]
shares = st.fixed_dictionaries({"percent": st.sampled_from([0, 50, 100]), "key": st.sampled_from(["tenant", "prompt"])})
rules = st.fixed_dictionaries(
    {
        "when": st.fixed_dictionaries(
            {"channels": st.just(["prompt"])},
            optional={
                "names": st.sampled_from([["a"], ["b"], ["a", "b"]]),
                "patterns": st.just(["p"]),
                "tenants": st.sampled_from([["acme"], ["a*"]]),
                "routes": st.just(["edit"]),
                "share": shares,
            },
        ),
        "then": st.fixed_dictionaries({"action": st.sampled_from(["allow", "anonymize", "rewrite", "block"])}),
    }
)
specs = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["enforce", "shadow", "unsafe_off"]),
        "without_prefix": st.just("rewrite"),
        "names": st.just(NAMES),
        "patterns": st.just(PATTERNS),
        "rules": st.lists(rules, min_size=1, max_size=4),
    },
    optional={"rollout": shares},
)
prompts = st.sampled_from(["Mara Voss Kim", "a  cat", "mara v\u043ess", "", "Voss Kim, Mara-Voss's cat"])


def draw(prompt):
    return [prompt]


@settings(deadline=None)
@given(specs, prompts, st.sampled_from([None, "acme", "other"]), st.sampled_from([None, "edit"]))
def test_an_explanation_is_what_the_guard_does(spec, prompt, tenant, route):
    """The same decision, and the text that it says is the text that the backend gets, or none does."""
    for number, rule in enumerate(spec["rules"]):
        rule["id"] = f"r{number}"
    head = {"apiVersion": "apl-guard/v1", "kind": "Policy", "metadata": {"name": "p", "version": 1}}
    try:
        policy = Policy.model_validate(head | {"spec": spec})
    except ValueError:
        return
    guard = Guard(draw, policy)
    channels = frozenset({Channel.PROMPT})
    request = GenerationRequest(guard._parts.backend.name, {Channel.PROMPT: (prompt,)}, channels, carries_prefix=False)
    explained = PolicyInForce(policy).explain(request, Context(tenant, route)).decision

    with guard.context(tenant=tenant, route=route):
        try:
            made = guard.generate(prompt)
            decision, output = made.decision, made.output
        except PolicyBlocked as blocked:
            decision, output = blocked.decision, None

    assert decision.model_dump(exclude={"id"}) == explained.model_dump(exclude={"id"})
    runs = explained.texts.get(Channel.PROMPT, (prompt,))
    assert output == (None if explained.effective == "block" else list(runs))
