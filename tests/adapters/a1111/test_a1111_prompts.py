"""In front of AUTOMATIC1111: the prefix begins every chunk of all that is encoded, or the prompt is refused."""

import re
from time import process_time

import pytest
from a1111_server import TOKENIZER, all_begin_with
from hypothesis import example, given, settings
from hypothesis import strategies as st
from permitting import allowing

from apl_guard import (
    A1111,
    Guard,
    Policy,
    PolicyBlocked,
    PrefixNotApplied,
)
from apl_guard.adapters.prompts.syntax import prefixed, read_a1111
from apl_guard.adapters.prompts.token_bounds import byte_bound, most_tokens
from apl_guard.request import Channel


@pytest.mark.parametrize(
    "prompt",
    [
        "", "a man", "a man " * 60, "a man, " * 60, "a (man:1.2) in [red]", "a man BREAK a dog", "BREAK", "a AND b",
        "a man :1.2 AND a dog :0.5", "[a man:a dog:0.5] in a park", "[a|b|c] man", r"a \(man\)", "(a man", "a) man] :",
        "((a)) man", "a # comment ( \n man", "a man\nBREAK\na dog", "ANDROID BREAKFAST", "日本語のプロンプト " * 9,
        "(a man in a park:1.1) " * 20, "a man AND " * 5 + "a dog", "x" * 200, "\x85 " * 80 + "a man",
        "\u01c6" * 32 + " a man", "\x1c" * 70 + " a man", "a man " * 5 + "ADDROW " + "a dog " * 9 + "a man",
    ],
)  # fmt: skip
def test_every_chunk_begins_with_the_prefix(guard, server, prefix, prompt):
    """For each kind of syntax that is kept, however long."""
    guard(prompt, enable_hr=True, hr_prompt=prompt)

    assert all_begin_with(server.encoded[-1], prefix)


WORDS = st.sampled_from(
    ["a", "man", "Mara", "Voss", ",", "BREAK", "AND", "AND :", ":2", "(", ")", "[", "]", "|", ":", ":0.5]", ":1.5)",
     "\\", "BRE", "AK", "#", "\n", "é", "__x__", "apl-0123456789abcdef", "mara-voss", "mara", "-", "-1",
     "<lora:x:1>", "E", "long" * 9, "ADDROW", "\x85" * 9, "[)"]
)  # fmt: skip


@settings(max_examples=200)
@given(st.lists(WORDS, max_size=60), st.sampled_from(["", " "]))
@example(["BR", "[", "E", "|", "x", "]", "AK", "Mara"], "")
@example(["(", "BREAK", ":0)", "Mara"], " ")
@example(["BRE<lora:x:0>AK", "Mara"], " ")
@example(["BRE", "#", "\n", "AK", "Mara"], "")
@example(["Mara", "AND", ":", "-1"], " ")
def test_no_prompt_gets_a_chunk_without_the_prefix(shared_server, prefix, words, between):
    """Whatever is typed is blocked, or cannot be cut, or begins every chunk with the prefix at positive weight."""
    text = between.join(words)
    syntax = read_a1111(text, shared_server.embeddings)
    if syntax.channels:
        return
    try:
        sent = prefixed(syntax.text, prefix.embedding_name, prefix.n, byte_bound)
    except PrefixNotApplied:
        return

    encoded = shared_server.encode(sent)

    assert all_begin_with(encoded, prefix), sent
    assert all(weight >= 0 for weight, _ in encoded), sent


@given(st.lists(WORDS, max_size=40))
def test_nothing_of_the_prompt_is_lost(shared_server, words):
    """Besides tags and comments, what stands in the prompt stands in what is sent, in its order."""
    text = " ".join(w for w in words if w not in ("#", "\\"))
    syntax = read_a1111(text)
    try:
        sent = prefixed(syntax.text, "APL", 10, byte_bound)
    except PrefixNotApplied:
        return

    def content(of):
        return re.sub(r"\s+|BREAK|APL|<lora:x:1>", "", of)

    assert content(sent) == content(text)


@pytest.mark.parametrize(
    ("prompt", "channel"),
    [
        ("a man <lora:mara:1>", "adapter_weights"),
        ("a man <hypernet:mara:1>", "adapter_weights"),
        ("a man, mara-voss", "textual_inversion"),
        ("a man, MARA - VOSS", "textual_inversion"),
        ("xmara-voss", "textual_inversion"),
        ("(Mara Voss:9)", "prompt_syntax"),
        ("(Mara Voss:-1)", "prompt_syntax"),
        ("((((((((Mara Voss))))))))", "prompt_syntax"),
        ("((Mara Voss:1.9):1.9)", "prompt_syntax"),
        ("(" * 20 + "Mara Voss AND x" + ":1)" * 20, "prompt_syntax"),  # in its own part, no bracket is closed
        ("(Mara Voss:1[0|5]0)", "prompt_syntax"),
        ("(a BREAK b:0.1)", "prompt_syntax"),
        ("[) a BREAK " + "a man " * 9, "prompt_syntax"),
        ("(] a BREAK " + "a man " * 9, "prompt_syntax"),
        ("BR[E|x]AK Mara Voss", "prompt_syntax"),
        ("Mara Voss AND :-1", "prompt_syntax"),
        ("__celebrity__", "prompt_syntax"),
        ("{Mara Voss|a cat}", "prompt_syntax"),
        ("apl-0123456789abcdef", "prompt_syntax"),
        ("APL-0123456789abcdef", "prompt_syntax"),
        ("__famous_people__", "prompt_syntax"),
        ("${who=Mara} ${who}", "prompt_syntax"),
        ('{{ "Ma" ~ "ra" }}', "prompt_syntax"),
        ("{% for x in y %}", "prompt_syntax"),
        ("[a|b]" * 7, "prompt_syntax"),
        ("[a|b]" * 6 + "c" * 9000, "prompt_syntax"),
        ("ma[ra:ra:0.5]-voss", "textual_inversion"),
        ("ma(ra:1.0)-voss", "textual_inversion"),
        (r"ma\ra-voss", "textual_inversion"),
        ("mara&nbsp;-voss", "textual_inversion"),
        ("ma\u00ef\u00bb\u00bfra-voss", "textual_inversion"),  # a byte order mark in a wrong encoding
        ("mara\x1b\\[0m-voss", "textual_inversion"),  # what colours a terminal
        ("the king\u2019s", "textual_inversion"),
    ],
)
@pytest.mark.parametrize("field", ["prompt", "hr_prompt", "negative_prompt"])
def test_syntax_that_could_undo_the_prefix_is_blocked(guard, server, prompt, channel, field):
    """In each text; the error names the channel that a policy may permit, and nothing is drawn."""
    with pytest.raises(PolicyBlocked, match=channel):
        guard(**{"prompt": "a cat", field: prompt})

    assert server.posted("/sdapi/v1/txt2img") == []


@pytest.mark.parametrize(
    "prompt", ["a cat :0", "a cat :.05", "a:0.2 AND b:0.2", "a cat :0 <x:a:1>", "a\ncat：0", "a :0#"]
)
@pytest.mark.parametrize("field", ["prompt", "hr_prompt"])
def test_a_prompt_that_weighs_nothing_is_blocked(guard, server, prompt, field):
    """The server multiplies guidance by the weight behind a part, so the negative prompt would be drawn, bare."""
    with pytest.raises(PolicyBlocked, match="guidance"):
        guard(**{"prompt": "a cat", field: prompt, "negative_prompt": "Mara Voss"})

    assert server.posted("/sdapi/v1/txt2img") == []


FORMS = {"levels": 20, "alternatives": 64, "letters": 19_997}


@pytest.mark.parametrize("kind", FORMS)
def test_a_prompt_of_more_forms_than_are_read_is_blocked(kind):
    """A name in one of the others would be found by nobody; up to the bound, all of them are read."""

    def prompt(n):
        return {
            "levels": "[" * n + "a|b" + "]" * n,
            "alternatives": f"[{'|'.join(['a'] * n)}]",
            "letters": "[a]" + "x" * n,
        }[kind]

    for n in (FORMS[kind], FORMS[kind] + 1):
        channels = read_a1111(prompt(n)).channels
        assert (Channel.PROMPT_SYNTAX in channels) == (n > FORMS[kind])


def test_weights_of_parts_that_come_to_one_are_not_blocked(guard):
    """Of each part, they say how much it counts beside the others."""
    for prompt in ("a:0.7 AND b:0.2 AND c:0.1", "a AND b:0.1", "ratio 16:9", "a cat :1.2"):
        assert guard.check(prompt, negative_prompt="blur :0.1").action == "anonymize"


@pytest.mark.parametrize("between", ["\u00ef\u00bb\u00bf", "\x1b\\[0m", "\x00", "\ufffc"])
def test_the_name_of_the_prefix_in_broken_letters(guard, server, prefix, between):
    """The tokenizer of the server mends them before it looks for embeddings."""
    spelled = prefix.embedding_name.replace("-", f"{between}-")
    (chunk,) = server.chunks(spelled)
    assert chunk[0][0] == prefix.embedding_name

    with pytest.raises(PolicyBlocked, match="prompt_syntax"):
        guard("a man", negative_prompt=spelled)
    assert server.posted("/sdapi/v1/txt2img") == []


def test_broken_letters_that_name_nothing_are_not_blocked(guard):
    """Accents in a wrong encoding, typographic quotes, letters of a private area."""
    for prompt in (
        "a caf\u00c3\u00a9 in Paris",
        "a man\u2019s \u201chat\u201d",
        "a \ue000 sign",
        "fl\ufb02at \x07 land",
    ):
        assert guard.check(prompt, negative_prompt=prompt).action == "anonymize"


@pytest.mark.parametrize("between", ["", " ", "["])
def test_the_name_of_the_prefix_with_syntax_or_blanks_in_it(guard, server, prefix, between):
    """The server finds embeddings by their tokens; in a negative prompt this one would undo what it does in front."""
    spelled = prefix.embedding_name.replace("-", f"{between}-{between.replace('[', ':-:0]')}")
    (chunk,) = server.chunks(f"apl {between.replace('[', '')}- {prefix.embedding_name[4:]}")
    assert chunk[0][0] == prefix.embedding_name

    with pytest.raises(PolicyBlocked, match="prompt_syntax"):
        guard("a man", negative_prompt=spelled)


def test_weights_below_the_bound_are_not_blocked(guard):
    """What people write every day."""
    for prompt in (
        "(a man:1.4)",
        "((a man))",
        "[a man]",
        "a man (smiling:0.8), ratio 16:9",
        "time: 5 (pm)",
        "{{a man}}",
        "a_b__c",
    ):
        assert guard.check(prompt).action == "anonymize"


@pytest.mark.parametrize(
    "prompt", ["&nGg;" * 13 + " a man", "\x85 " * 80 + "a man", "\u01c6" * 32 + " a man", "caf\u00e9 " * 40], ids=ascii
)
def test_the_tokenizer_of_the_server_may_find_more_tokens_than_the_one_that_is_given(server, prefix, prompt):
    """It reads entities of HTML and mends letters first."""
    Guard(A1111(server.url, tokenizer=TOKENIZER), prefix=prefix)(prompt)

    assert all_begin_with(server.encoded[-1], prefix)


def test_the_server_may_know_an_older_unicode():
    """Its letters have two bytes in small, and three where nobody knows yet that they are capitals."""
    assert most_tokens("\ua7cb" * 30, TOKENIZER, "") == 90
    assert most_tokens("an \U0001f600 man", TOKENIZER, "") == len(TOKENIZER.tokenize("an \U0001f600 man"))


@pytest.mark.parametrize("word", ["ADDROW", "ADDCOL", "ADDBASE", "ADDCOMM"])
def test_words_of_regional_prompter_begin_a_chunk_only_where_a_script_is_called(server, prefix, word):
    """Without it the server takes them for words, so that the text behind them may run into the next chunk."""
    prompt = "a man " * 5 + f"{word} " + "a dog " * 9 + "a man"
    guard = Guard(A1111(server.url), allowing("extension"), prefix=prefix)

    guard(prompt)
    guard(prompt, alwayson_scripts={"Regional Prompter": {"args": [True]}})

    plain, cut = (fields["prompt"] for fields in server.posted("/sdapi/v1/txt2img"))
    assert f"{word} {prefix.embedding_name}" not in plain
    assert f"{word} {prefix.embedding_name} a dog" in cut
    assert all_begin_with(server.encoded[0], prefix)


@pytest.mark.parametrize("tag", ["<lora:a BREAK b:1>", "\uff1clora:a BREAK b:1\uff1e", "\uff1clora:a AND b:1\uff1e"])
def test_a_tag_hides_no_break(server, prefix, tag):
    """The server takes tags out before it cuts the prompt, so what is cut there is one text. The policy looks for
    names, so that wide letters become those of a tag."""
    rules = [
        {"id": "named", "when": {"channels": ["prompt"], "names": ["stars"]}, "then": {"action": "anonymize"}},
        {"id": "open", "when": {"channels": ["adapter_weights"]}, "then": {"action": "unsafe_allow"}},
    ]
    names = [{"id": "stars", "people": [{"name": "Mara Voss", "neutral": "a woman"}]}]
    policy = Policy(
        apiVersion="apl-guard/v1",
        kind="Policy",
        metadata={"name": "open", "version": 1},
        spec={"rules": rules, "names": names},
    )
    Guard(A1111(server.url), policy, prefix=prefix)(f"Mara Voss {'a ' * 50} {tag} {'a ' * 50}")

    assert len(server.encoded[-1]) > 1
    assert all_begin_with(server.encoded[-1], prefix)


def test_a_tag_made_by_taking_out_another_is_blocked(server, prefix):
    """Sent with the others at its end, a prompt has tags that it did not have."""
    guard = Guard(A1111(server.url), allowing("adapter_weights"), prefix=prefix)

    with pytest.raises(PolicyBlocked, match="prompt_syntax"):
        guard(f"{'a ' * 50} <lo<x:1>ra: BREAK > {'a ' * 50}")
    assert server.encoded == []


def test_a_prompt_full_of_beginnings_of_tags_is_read_in_time():
    """The largest request would take minutes."""
    started = process_time()
    read_a1111("<a:" * 30_000)

    assert process_time() - started < 0.5


def test_with_the_tokenizer_a_chunk_is_filled(server, prefix):
    """Without it, words count by their letters; either way the prefix begins every chunk."""
    prompt = "a photo of an man, " * 12
    for tokenizer, chunks in ((None, 3), (TOKENIZER, 2)):
        Guard(A1111(server.url, tokenizer=tokenizer), prefix=prefix)(prompt)

        assert len(server.encoded[-1]) == chunks
        assert all_begin_with(server.encoded[-1], prefix)


def test_brackets_longer_than_a_chunk_are_refused(guard, server):
    """They cannot be cut, so their end would stand in a chunk without the prefix."""
    for prompt in ("(" + "a man " * 20 + ":1.2)", "[) a dog " + "a man " * 20, "(] a dog " + "a man " * 20):
        with pytest.raises(PrefixNotApplied, match="65 tokens"):
            guard(prompt)
    assert server.posted("/sdapi/v1/txt2img") == []


@pytest.mark.parametrize("option", [{"emphasis": "None"}, {"enable_emphasis": False}])
def test_a_server_that_reads_no_break_draws_short_prompts_only(guard, server, option):
    """Where weights are switched off in its settings, a long prompt cannot have the prefix in each chunk."""
    server.model |= option

    guard("a man")
    for prompt in ("a man, " * 60, "a man BREAK a dog"):
        with pytest.raises(PrefixNotApplied, match="emphasis"):
            guard(prompt)
    assert len(server.posted("/sdapi/v1/txt2img")) == 1
