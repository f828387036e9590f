"""Decisions: what follows from the rules for a request."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_documents import policy

from apl_guard import Action, InvalidInput, Policy, RequestTooLarge, decide
from apl_guard.decision.findings import Finding, Findings
from apl_guard.policy import Mode
from apl_guard.request import Channel, GenerationRequest
from apl_guard.request.context import Context, calling_for, current_context

ALLOW_NEGATIVE = {"id": "negative", "when": {"channels": ["negative_prompt"]}, "then": {"action": "allow"}}
PREFIX = {"id": "prefix", "when": {"channels": ["prompt"]}, "then": {"action": "anonymize"}}


def rule(id="r", channels=("prompt",), action="block", then=None, **when):
    return {"id": id, "when": {"channels": channels, **when}, "then": {"action": action, **(then or {})}}


def request(*used, prompts=("a cat",), **others):
    used = used or (Channel.PROMPT,)
    text = {Channel.PROMPT: prompts} if Channel.PROMPT in used else {}
    return GenerationRequest("test:Pipe", text, frozenset(used), **others)


def test_what_no_rule_applies_to_is_blocked():
    """Also an argument that no channel is known for, and a channel whose only rule is for somebody else."""
    found = policy(PREFIX, rule("latents", ["latents"], "unsafe_allow", tenants=["lab"]))

    assert decide(found, request()).action == Action.ANONYMIZE
    assert decide(found, request(Channel.PROMPT, Channel.LATENTS)).action == Action.BLOCK
    assert decide(found, request(Channel.PROMPT, Channel.LATENTS), Context("lab")).action == Action.ANONYMIZE
    decision = decide(found, request(unknown=("surprise",)))
    assert decision.action == Action.BLOCK
    assert (decision.reasons[-1].rule, decision.reasons[-1].why) == (None, "unknown argument")


def test_a_rule_for_every_tenant_holds_for_calls_that_name_none():
    """Nobody gets out of it by naming none; a rule for some tenants does not hold for them."""
    strict = policy(PREFIX, rule("everybody", tenants=["*"]))
    some = policy(PREFIX, rule("some", tenants=["a*"]))

    assert decide(strict, request()).action == decide(strict, request(), Context("acme")).action == Action.BLOCK
    assert decide(some, request()).action == Action.ANONYMIZE


def test_the_strictest_rule_counts():
    """Beside it, a permission does nothing and is not reported as one."""
    rules = [rule("a", action="unsafe_allow"), PREFIX, rule("b", action="block", then={"category": "likeness"})]

    decision = decide(policy(*rules), request())

    assert (decision.action, decision.category, decision.unsafe) == (Action.BLOCK, "likeness", ())
    assert decision.rules == ("b",)
    assert decide(policy(*rules[:2]), request()).unsafe == ()
    assert decide(policy(*rules[:1]), request()).unsafe == ("rule 'a': unsafe_allow prompt",)


verbs = {"prompt": ["allow", "anonymize", "unsafe_allow", "block"], "latents": ["unsafe_allow", "block"]}
some_rules = st.lists(
    st.sampled_from(sorted(verbs)).flatmap(
        lambda channel: st.builds(
            lambda number, verb, tenants: rule(
                f"r{number}", [channel], verb, **({"tenants": tenants} if tenants else {})
            ),
            st.integers(0, 10**9),
            st.sampled_from(verbs[channel]),
            st.sampled_from([None, ["a*"], ["b"]]),
        )
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda r: r["id"],
)


@given(some_rules, st.sampled_from([None, "a1", "b"]))
def test_the_order_of_rules_does_not_count_and_more_rules_are_never_more_lenient(rules, tenant):
    """For channels to which a rule applies anyway. A rule that blocks in any case keeps the policies valid."""
    rules = [rule("guard", ["prompt"], "block", tenants=["nobody"]), *rules]
    asked = request(Channel.PROMPT, Channel.LATENTS)
    context = Context(tenant)
    decision, other_way, fewer = (
        decide(policy(*found), asked, context) for found in (rules, rules[::-1], [rules[0], *rules[2:]])
    )

    assert decision.model_copy(update={"policy_digest": ""}) == other_way.model_copy(update={"policy_digest": ""})
    for with_rule, without in zip(decision.reasons, fewer.reasons, strict=True):
        assert with_rule.action.strictness >= without.action.strictness or without.rule is None


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ({"models": ["test:*"]}, True),
        ({"models": ["diffusers:*", "test:Pipe"]}, True),
        ({"models": ["test:Pip"]}, False),
        ({"tenants": ["acme"]}, True),
        ({"tenants": ["acm"]}, False),
        ({"routes": ["gen*"]}, True),
        ({"routes": ["edit"]}, False),
        ({"share": {"percent": 100}}, True),
        ({"share": {"percent": 0}}, False),
        ({"tenants": ["acme"], "routes": ["edit"]}, False),
        ({"tenants": ["acme"], "routes": ["generate"]}, True),
    ],
)
def test_every_condition_must_hold(when, holds):
    """Of several values of one, one is enough."""
    decision = decide(policy(PREFIX, rule(**when)), request(), Context("acme", "generate"))

    assert decision.action == (Action.BLOCK if holds else Action.ANONYMIZE)


def test_a_share_is_as_large_as_it_says_and_grows_without_letting_anybody_out():
    """Of 4,000 requests; 4 standard deviations are 2.8 percent points."""
    for key, contexts in (("request", [Context()] * 4000), ("tenant", [Context(f"t{i}") for i in range(4000)])):
        members = []
        for percent in (20, 30):
            found = policy(PREFIX, rollout={"percent": percent, "key": key, "salt": "s"})
            decisions = [decide(found, request(id=str(i)), c) for i, c in enumerate(contexts)]
            members.append({i for i, decision in enumerate(decisions) if decision.in_rollout})
            assert abs(len(members[-1]) / 40 - percent) < 2.9
        assert members[0] < members[1]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.text(max_size=10))
def test_who_is_in_a_share_is_the_same_in_every_release(id, salt):
    """The first bits of SHA-256 over salt and key: a rollout that goes on over an update moves nobody."""
    digest = hashlib.sha256(f"{salt}\0{id}".encode("utf-8", "surrogatepass")).digest()
    percent = 100 * int.from_bytes(digest[:8]) / 2**64

    for share, is_in in ((max(percent - 1e-6, 0), False), (min(percent + 1e-6, 100), True)):
        found = policy(PREFIX, rollout={"percent": share, "salt": salt})
        assert decide(found, request(id=id)).in_rollout is is_in


def test_the_key_of_a_rollout_says_who_goes_the_same_way():
    """Requests of a tenant, or equal prompts; and another salt draws others."""

    def effective(key, salt="", **asked):
        tenant, prompts, id = asked.get("tenant", "t"), asked.get("prompts", ("x",)), asked.get("id", "i")
        found = policy(PREFIX, rollout={"percent": 50, "key": key, "salt": salt})
        return decide(found, request(prompts=prompts, id=id), Context(tenant)).effective

    many = [str(i) for i in range(40)]
    assert len({effective("request", id=i) for i in many}) == 2
    assert len({effective("tenant", id=i) for i in many}) == 1
    assert len({effective("tenant", tenant=i) for i in many}) == 2
    assert len({effective("prompt", id=i, tenant=i) for i in many}) == 1
    assert len({effective("prompt", prompts=(i,)) for i in many}) == 2
    assert len({effective("tenant", salt=i) for i in many}) == 2


def test_nobody_gets_out_of_a_rollout_by_not_saying_who_they_are():
    """A request without tenant is in."""
    assert decide(policy(PREFIX, rollout={"percent": 0, "key": "tenant"}), request()).effective == Action.ANONYMIZE
    assert decide(policy(PREFIX, rollout={"percent": 0, "key": "request"}), request()).effective == Action.ALLOW


@pytest.mark.parametrize("spec", [{"mode": "shadow"}, {"rollout": {"percent": 0}}])
def test_what_is_not_carried_out_puts_no_prefix_in_front(spec):
    """Also of a request that nothing blocks: in shadow and outside of the rollout it runs as it came."""
    decision = decide(policy(PREFIX, **spec), request())

    assert (decision.action, decision.effective, decision.prefixed) == (Action.ANONYMIZE, Action.ALLOW, False)
    assert decision.in_rollout is ("rollout" not in spec)


def test_what_is_blocked_asks_for_no_prefix():
    """So that nobody looks for one, and a prefix that is missing turns no block into a failure; nor do texts run."""
    asked, found = request(Channel.PROMPT, Channel.LATENTS), Findings(texts={Channel.PROMPT: ("a cat",)})

    decision = decide(policy(PREFIX, rule("b", ["latents"], "block")), asked, findings=found)

    assert (decision.effective, decision.prefixed, decision.texts) == (Action.BLOCK, False, {})
    assert (decision.prefix, decision.strength) == (None, 1.0)


def test_the_category_is_that_of_a_rule_that_has_one():
    """Of all that block."""
    rules = [rule("a", ["image"]), rule("b", ["latents"], then={"category": "likeness"}), PREFIX]

    assert decide(policy(*rules), request(Channel.IMAGE, Channel.LATENTS)).category == "likeness"


def test_of_two_people_found_in_one_place_the_first_by_source_is_described():
    """Whichever was found first."""
    lists = [{"id": id, "people": [{"name": "Mara Voss"}]} for id in "abcdefgh"]
    rewrite = rule("r", action="rewrite", names=list("abcdefgh"))
    found = [
        Finding(source=f"names.{id}", channel=Channel.PROMPT, text=0, start=0, end=9, neutral=f"person {id}")
        for id in "abcdefgh"
    ]
    looked = frozenset(each.source for each in found)
    texts = {Channel.PROMPT: ("Mara Voss",)}

    for order in (found, found[::-1]):
        seen = Findings(tuple(order), looked, texts=texts)
        decision = decide(policy(rewrite, names=lists), request(prompts=("Mara Voss",)), findings=seen)
        assert decision.texts == {Channel.PROMPT: ("person a",)}
        assert decision.looked == tuple(sorted(looked))


@pytest.mark.parametrize("mode", ["shadow", "unsafe_off"])
def test_only_enforce_is_carried_out(mode):
    """In shadow the action is still said; off says nothing, but that it is off."""
    decision = decide(policy(PREFIX, mode=mode), request(Channel.PROMPT, Channel.LATENTS))

    assert (decision.effective, decision.prefixed) == (Action.ALLOW, False)
    assert decision.action == (Action.BLOCK if mode == "shadow" else Action.ALLOW)
    assert decision.unsafe == (() if mode == "shadow" else ("mode: unsafe_off",))
    assert decision.mode == Mode(mode)


def test_the_strongest_prefix_asked_for_goes_in_front():
    """Of equals, that of the rule whose id is first; and the strength says how many vectors."""
    weak = rule("w", action="anonymize", then={"strength": 0.31, "prefix": "weak"})
    full = [rule(i, action="anonymize", then={"prefix": f"full-{i}"}) for i in "ba"]

    alone, together = decide(policy(weak), request()), decide(policy(weak, *full), request())

    assert (alone.prefix, alone.strength, alone.rows(10), alone.rows(2), alone.rows(1)) == ("weak", 0.31, 4, 1, 1)
    assert (together.prefix, together.strength, together.rows(10)) == ("full-a", 1.0, 10)


@given(st.integers(1, 128), st.integers(1, 128))
def test_strength_k_of_n_means_k_vectors(n, k):
    """However a float rounds k / n."""
    k = min(k, n)
    found = policy(rule(action="anonymize", then={"strength": k / n}))

    assert decide(found, request()).rows(n) == k


def test_however_little_strength_is_asked_for_one_vector_stands_in_front():
    """None would be an image without a prefix under a policy that asks for one."""
    decision = decide(policy(rule(action="anonymize", then={"strength": 1e-12})), request())

    assert (decision.prefixed, decision.rows(10)) == (True, 1)


def test_what_no_prefix_can_reach_is_blocked():
    """Where a rule wants the prompt anonymized and the backend cannot take a prefix, the prompt does not pass."""
    decision = decide(policy(PREFIX), request(carries_prefix=False))

    assert (decision.effective, decision.prefixed) == (Action.BLOCK, False)
    assert decision.reasons[0].rule == "prefix"
    assert decision.reasons[0].why == "no prefix can reach this backend; without_prefix: block"


NAMES = [{"id": "stars", "people": [{"name": "Mara Voss"}]}]


@pytest.mark.parametrize(
    ("on_error", "channel", "action", "unsafe"),
    [
        ("block", Channel.PROMPT, Action.BLOCK, ()),
        ("fallback", Channel.PROMPT, Action.ANONYMIZE, ()),
        ("fallback", Channel.NEGATIVE_PROMPT, Action.BLOCK, ()),
        ("unsafe_passthrough", Channel.PROMPT, Action.ALLOW, ("on_error: unsafe_passthrough",)),
    ],
)
def test_where_nobody_looked_on_error_says_what_follows(on_error, channel, action, unsafe):
    """In front of a negative prompt a prefix protects nobody: there `fallback` is no picture, and no judgement."""
    texts = [channel.value]
    found = policy(rule("all", texts, "allow"), rule("stars", texts, names=["stars"]), names=NAMES, on_error=on_error)
    asked = GenerationRequest("test:Pipe", {channel: ("a cat",)}, frozenset({channel}))

    decision = decide(found, asked, findings=Findings())

    assert (decision.action, decision.prefixed, decision.unsafe) == (action, action == Action.ANONYMIZE, unsafe)
    assert decision.is_blind == (action == Action.BLOCK)
    assert decision.reasons[0].why.startswith("names.stars did not look; on_error: ")
    looked = Findings(looked=frozenset({"names.stars"}))
    assert decide(found, asked, findings=looked).action == Action.ALLOW


@pytest.mark.parametrize(("beside", "is_blind"), [("allow", True), ("block", False)])
def test_it_is_a_failure_where_nothing_but_failures_blocks(beside, is_blind):
    """A channel that may pass makes no judgement of it, and one that a rule blocks is no failure for another's sake."""
    rules = [rule("stars", names=["stars"]), PREFIX, rule("beside", ["negative_prompt"], beside)]
    asked = request(Channel.PROMPT, Channel.NEGATIVE_PROMPT)

    decision = decide(policy(*rules, names=NAMES), asked, findings=Findings())

    assert (decision.effective, decision.is_blind) == (Action.BLOCK, is_blind)


def test_a_passthrough_beside_a_rule_that_protects_is_said():
    """For of what the prompt would have been changed to, nobody knows."""
    found = policy(PREFIX, rule("stars", names=["stars"]), names=NAMES, on_error="unsafe_passthrough")

    decision = decide(found, request(), findings=Findings())

    assert (decision.action, decision.unsafe) == (Action.ANONYMIZE, ("on_error: unsafe_passthrough",))


def test_no_text_is_rewritten_in_place_of_a_prefix_where_nobody_looked():
    """For names that are there would stay: the backend gets no prompt at all."""
    found = policy(PREFIX, names=NAMES, without_prefix="rewrite")
    asked = request(carries_prefix=False)

    decision = decide(found, asked, findings=Findings())

    assert (decision.effective, decision.reasons[0].rule, decision.is_blind) == (Action.BLOCK, "prefix", True)
    assert decision.reasons[0].why.endswith("without_prefix: rewrite, but names.stars did not look")
    looked = Findings(looked=frozenset({"names.stars"}))
    assert decide(found, asked, findings=looked).action == Action.REWRITE


@pytest.mark.parametrize("ids", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize(
    "more", [{}, {"without_prefix": "rewrite", "patterns": [{"id": "word", "regex": "did not look"}]}]
)
def test_a_rule_that_blocks_is_not_hidden_by_what_blocks_for_another_reason(ids, more):
    """Neither by a failure nor for want of a prefix: it is the policy that blocks, in its own words."""
    block = rule(ids[0], action="block", then={"category": "likeness"}, names=["stars"])
    found = policy(block, rule(ids[1], action="anonymize"), names=NAMES, **more)
    seen = (Finding(source="names.stars", channel=Channel.PROMPT, text=0, start=0, end=9),)

    decision = decide(found, request(carries_prefix=False), findings=Findings(seen, frozenset({"names.stars"})))

    assert (decision.reasons[0].rule, decision.category, decision.is_blind) == (ids[0], "likeness", False)


@pytest.mark.parametrize(
    ("prompts", "why"),
    [
        (("a" * 11,), "limits.characters"),
        (("a",) * 4, "limits.texts"),
        (("\ud800",), "surrogate"),
        (("x\udfff",), "surrogate"),
    ],
)
def test_what_is_too_much_or_no_text_is_blocked(prompts, why):
    """Whatever the rules say; and just below the limit it is not."""
    found = policy(rule(action="unsafe_allow"), limits={"characters": 10, "texts": 3})

    decision = decide(found, request(prompts=prompts))
    assert decision.action == Action.BLOCK
    assert why in decision.reasons[-1].why
    assert decide(found, request(prompts=("a" * 10,) * 3)).action == Action.ALLOW


@given(st.text(st.characters()), st.booleans())
def test_any_text_gets_a_decision(text, carries_prefix):
    """Any code points, surrogates among them."""
    asked = request(prompts=(text,), carries_prefix=carries_prefix)

    assert decide(Policy.load("anonymize_faces"), asked).action in (Action.ANONYMIZE, Action.BLOCK)


@pytest.mark.parametrize("prompts", [("a" * 1_000_000,), ("a" * 100,) * 10_000])
def test_the_largest_request_gets_a_decision(prompts):
    """Which is no, for a policy permits less; what is larger is no request."""
    assert decide(Policy.load("anonymize_faces"), request(prompts=prompts)).action == Action.BLOCK

    with pytest.raises(RequestTooLarge, match="1000000"):
        request(prompts=(*prompts, "a"))


def test_a_request_and_a_decision_show_no_content():
    """They may appear in a log or a traceback."""
    prompt = {Channel.PROMPT: ("Mara Voss",)}
    asked = GenerationRequest("test:Pipe", prompt, frozenset({Channel.PROMPT}), (), {"prompt": "Mara Voss"})
    seen = Finding(source="names.x", channel=Channel.PROMPT, text=0, start=0, end=9, neutral="no Mara")
    decision = decide(policy(PREFIX), asked, findings=Findings((seen,), texts=prompt))

    assert decision.texts == prompt
    assert "Mara" not in repr(asked) + repr(decision) + decision.model_dump_json()


def test_the_context_is_that_of_the_innermost_block():
    """And what it was before, after it."""
    with calling_for(tenant="a", route="r"):
        with calling_for(tenant="b"):
            assert current_context() == Context("b", "r")
        assert current_context() == Context("a", "r")
    assert current_context() == Context()


@pytest.mark.parametrize("value", ["", "a\nb", "x" * 201, "\ud800", 7, b"acme"])
def test_a_context_is_short_printable_text(value):
    """Each part of it goes into records, whichever others there are."""
    for name in ("tenant", "route", "subject"):
        with pytest.raises(InvalidInput, match=name), calling_for(**{name: value}):
            pass
        assert Context(**{name: "x" * 200})


@pytest.mark.parametrize(
    ("score", "action"), [(0.29, "allow"), (0.3, "anonymize"), (0.89, "anonymize"), (0.9, "block"), (1.0, "block")]
)
def test_each_rule_goes_by_the_score_that_it_names(score, action):
    """A detector reports what the least of them asks for; one that asks for more does not apply to all of that."""
    rules = [
        rule("rest", action="allow"),
        rule("maybe", action="anonymize", entities=["person"], min_score=0.3),
        rule("surely", action="block", entities=["person"], min_score=0.9),
    ]
    seen = Finding(source="entity.person", channel=Channel.PROMPT, text=0, start=0, end=5, score=score)
    findings = Findings(found=(seen,), looked=frozenset({"entity.person"}))

    assert decide(policy(*rules, person={"model": "ner"}), request(), None, findings).action.value == action
