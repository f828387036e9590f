"""The prefix enters the text encoder exactly, for one call only."""

import copy
import itertools
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CanineTokenizer

from apl_guard import InvalidInput, PrefixInvalid, PrefixNotApplied
from apl_guard.adapters.inject import embed, encode_prompts, injected, tokenize_with_prefix
from apl_guard.adapters.inject.injection import _active
from apl_guard.adapters.inject.prefix_tokenizer import prefix_tokenizer
from apl_guard.adapters.inject.without_prefix import without_prefix
from apl_guard.testing import tiny_pipe, tiny_tokenizer

PROMPTS = ["a photo of a man", "", "a photo " * 60, "Mara Voss, <|endoftext|> 北京 😀"]
TOKENIZER = tiny_tokenizer()


@pytest.fixture
def vectors():
    return torch.randn(10, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.smoke
def test_prompt_embeds_equal_the_definition_bit_for_bit(shared_pipe, vectors, prompt_embeds_by_hand):
    """Short, empty, over-long and odd prompts give exactly what the sequence by hand gives."""
    encoder, tokenizer = shared_pipe.text_encoder, shared_pipe.tokenizer

    with torch.no_grad():
        found = encode_prompts(encoder, tokenizer, PROMPTS, vectors)

    assert torch.equal(prompt_embeds_by_hand(encoder, tokenizer, PROMPTS, vectors), found)


def test_without_a_prefix_it_is_what_the_pipeline_computes(shared_pipe):
    """`encode_prompts` without vectors equals the pipeline's own `encode_prompt`."""
    with torch.no_grad():
        theirs, _ = shared_pipe.encode_prompt(PROMPTS, "cpu", 1, False)
        ours = encode_prompts(shared_pipe.text_encoder, shared_pipe.tokenizer, PROMPTS)

    assert torch.equal(theirs, ours)


def test_gradients_flow_to_the_vectors(shared_pipe, vectors):
    """The gradient with respect to the prefix is that of finite differences, and every row has one."""
    vectors = vectors.double().requires_grad_()
    encoder = copy.deepcopy(shared_pipe.text_encoder).double()
    ids = tokenize_with_prefix(shared_pipe.tokenizer, ["a photo of a man"], 10)

    def loss(v):
        embeds = embed(encoder, ids, v)
        return (embeds * torch.linspace(-1, 1, embeds.numel(), dtype=torch.double).view_as(embeds).sin()).sum()

    loss(vectors).backward()
    step = torch.zeros_like(vectors)
    step[4, 7] = 1e-6
    with torch.no_grad():
        measured = (loss(vectors + step) - loss(vectors - step)) / 2e-6

    assert measured.item() == pytest.approx(vectors.grad[4, 7].item(), rel=1e-4)
    assert (vectors.grad.abs().sum(1) > 0).all()


@settings(max_examples=60)
@given(st.text(max_size=120), st.integers(0, 30))
def test_the_row_is_always_start_prefix_text_end_padding(text, n):
    """Whatever the text, the prefix stands in places 1 to N, and an end token follows the user's tokens."""
    (row,) = tokenize_with_prefix(TOKENIZER, [text], n).tolist()
    user = TOKENIZER(text, add_special_tokens=False).input_ids[: 77 - 2 - n]

    assert len(row) == 77
    assert row[: n + 1] == [TOKENIZER.bos_token_id, *range(-1, -n - 1, -1)]
    assert row[n + 1 :] == [*user, *[TOKENIZER.eos_token_id] * (76 - n - len(user))]


@pytest.mark.parametrize("prompts", [[], "a cat", ()])
def test_no_prompts_is_an_error(prompts):
    """An empty list, and a text in place of a list, are refused."""
    with pytest.raises(InvalidInput):
        tokenize_with_prefix(TOKENIZER, prompts, 2)


def test_a_tokenizer_in_python_whose_rows_end_with_another_token_than_eos():
    """As of BERT in older transformers. The prefix is behind the start token, for an empty prompt and one that says the
    last token of the row, too."""
    tokenizer = CanineTokenizer(eos_token=None, model_max_length=9)
    start, end, padding = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id

    rows = tokenize_with_prefix(tokenizer, ["", "a", f"{chr(end)}a"], 3).tolist()

    assert rows == [
        [start, -1, -2, -3, end, *[padding] * 4],
        [start, -1, -2, -3, ord("a"), end, *[padding] * 3],
        [start, -1, -2, -3, end, ord("a"), end, *[padding] * 2],
    ]


def test_a_template_before_the_prompt_wants_a_fast_tokenizer():
    """One in Python does not say which token is the prompt's first, as that of Qwen in older transformers."""
    with pytest.raises(PrefixNotApplied, match=r"CanineTokenizer is written in Python .* give the pipe the fast"):
        prefix_tokenizer(CanineTokenizer(), "MARK", 3)("a template, MARK a photo")


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda tokenizer: tokenizer("MARK a man", "a cat"), "a pair of texts"),
        (lambda tokenizer: tokenizer(["a cat", "MARK a man"], return_offsets_mapping=True), "return_offsets_mapping"),
        (lambda tokenizer: tokenizer("MARK a man", stride=2, truncation=True), "stride"),
        (lambda tokenizer: tokenizer([["MARK", "a", "man"]], is_split_into_words=True), "form that the guard does not"),
        (lambda tokenizer: tokenizer([("a cat", "MARK a man")]), "form that the guard does not know"),
        (lambda tokenizer: tokenizer("MARK a man MARK"), "repeated the mark"),
        (lambda tokenizer: tokenizer.encode("MARK a man MARK"), "repeated the mark"),
        (lambda tokenizer: tokenizer.tokenize("MARK a man MARK"), "repeated the mark"),
    ],
)
def test_a_pipeline_that_asks_for_rows_of_another_kind_is_refused(ask, says):
    """Nobody knows whether the prefix would stand in front of the prompt there."""
    with pytest.raises(PrefixNotApplied, match=says):
        ask(prefix_tokenizer(TOKENIZER, "MARK", 3))


def test_every_way_to_ask_for_ids_puts_the_prefix_in_front():
    """And of ids with the prefix, tokens and text can be asked for; the tokenizer outlives no call in a copy."""
    tokenizer = prefix_tokenizer(TOKENIZER, "MARK", 3)
    row = [TOKENIZER.bos_token_id, -1, -2, -3, *TOKENIZER("a man", add_special_tokens=False).input_ids]

    assert tokenizer.encode("MARK a man") == tokenizer("MARK a man").input_ids == [*row, TOKENIZER.eos_token_id]
    assert list(tokenizer("MARK a man", return_attention_mask=False)) == ["input_ids"]
    assert tokenizer.convert_ids_to_tokens(row)[1:5] == ["<prefix>"] * 3 + TOKENIZER.convert_ids_to_tokens(row[4:5])
    assert tokenizer.convert_ids_to_tokens(-1) == "<prefix>"
    assert tokenizer(tokenizer.decode(row[1:])).input_ids == [*row, TOKENIZER.eos_token_id]
    for texts in ("a man", ["a man", "a"]):
        marked = f"MARK {texts}" if isinstance(texts, str) else [f"MARK {text}" for text in texts]
        for options in ({}, {"return_tensors": "pt", "padding": True}):
            ours, plain = (
                t(x, return_length=True, **options).length for t, x in ((tokenizer, marked), (TOKENIZER, texts))
            )
            if transformers.__version__.startswith("4."):  # it counts a text and rows with padding otherwise
                continue
            assert (type(ours), [int(n) for n in ours]) == (type(plain), [int(n) + 3 for n in plain])
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(tokenizer)


def test_a_prefix_that_leaves_no_room_is_an_error():
    """75 vectors and the two special tokens fill the window, so no prompt fits."""
    with pytest.raises(PrefixInvalid, match="no room"):
        tokenize_with_prefix(TOKENIZER, ["a cat"], 75)


def test_a_prefix_of_another_width_is_an_error(shared_pipe):
    """The message names both widths."""
    with pytest.raises(PrefixInvalid, match=r"\(2, 8\).*32"):
        encode_prompts(shared_pipe.text_encoder, shared_pipe.tokenizer, ["a cat"], torch.zeros(2, 8))


def test_the_text_encoder_is_as_before_after_the_call(shared_pipe, vectors):
    """Class, attributes and state dict of the embedding layer are the old ones, also after an error."""
    encoder = shared_pipe.text_encoder
    layer = encoder.get_input_embeddings()
    before = (type(layer), dict(layer.__dict__), list(encoder.state_dict()))

    with pytest.raises(RuntimeError, match="inside"), injected(encoder, vectors):
        raise RuntimeError("inside")

    assert before == (type(layer), dict(layer.__dict__), list(encoder.state_dict()))


def test_outside_the_call_a_prefix_row_is_an_error_and_never_a_silent_pass(shared_pipe, vectors):
    """A copy of the encoder made during a call is a plain encoder; ids of a prefix do not run through it."""
    ids = tokenize_with_prefix(shared_pipe.tokenizer, ["a cat"], 10)

    with injected(shared_pipe.text_encoder, vectors):
        copied = copy.deepcopy(shared_pipe.text_encoder)
        unpickled = pickle.loads(pickle.dumps(shared_pipe.text_encoder.get_input_embeddings()))
    for encoder in (copied, shared_pipe.text_encoder):
        with pytest.raises(IndexError):
            encoder(ids)
    assert type(unpickled) is torch.nn.Embedding


def test_an_id_beyond_the_prefix_is_an_error(shared_pipe, vectors):
    """Ids for ten vectors do not run with three."""
    ids = tokenize_with_prefix(shared_pipe.tokenizer, ["a cat"], 10)

    with pytest.raises(IndexError):
        embed(shared_pipe.text_encoder, ids, vectors[:3])


def test_the_count_is_of_rows_that_really_arrived(shared_pipe, vectors):
    """Rows with the prefix count, plain rows do not."""
    encoder, tokenizer = shared_pipe.text_encoder, shared_pipe.tokenizer

    with torch.no_grad(), injected(encoder, vectors) as received:
        encoder(tokenize_with_prefix(tokenizer, ["a cat", "a dog"], 10))
        encoder(tokenize_with_prefix(tokenizer, ["a bird"], 0))

    assert received.rows == (10, 10)


def test_threads_with_different_prefixes_on_one_encoder(shared_pipe, prompt_embeds_by_hand):
    """Eight threads, each with vectors of its own or none, always get their own exact result."""
    encoder, tokenizer = shared_pipe.text_encoder, shared_pipe.tokenizer
    ids = tokenize_with_prefix(tokenizer, PROMPTS[:2], 4)
    plain = tokenize_with_prefix(tokenizer, PROMPTS[:2], 0)
    wrong = []

    def work(seed):
        own = torch.randn(4, 32, generator=torch.Generator().manual_seed(seed)) if seed % 2 else None
        with torch.no_grad():
            first = embed(encoder, ids if seed % 2 else plain, own)
            for _ in range(15):
                if not torch.equal(first, embed(encoder, ids if seed % 2 else plain, own)):
                    wrong.append(seed)
        if own is not None:
            expected = prompt_embeds_by_hand(encoder, TOKENIZER, PROMPTS[:2], own)
            if not torch.equal(first, expected):
                wrong.append(seed)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))

    assert wrong == []
    assert type(encoder.get_input_embeddings()) is torch.nn.Embedding


def test_the_default_device_of_a_platform_is_not_that_of_its_rows():
    """`torch.set_default_device` moves what torch makes; what the tokenizer gave is compared where it is."""
    ids = torch.tensor([[7, -1, -2, 8, 0]])

    with torch.device("meta"):
        _, kwargs = without_prefix((), {"input_ids": ids}, 0)

    assert kwargs["input_ids"].tolist() == [[7, 8, 0, 0, 0]]


def test_half_precision(vectors):
    """In a float16 encoder the vectors are rounded to float16 and nothing else changes."""
    pipe = tiny_pipe()
    encoder = pipe.text_encoder.half()
    ids = tokenize_with_prefix(pipe.tokenizer, ["a cat"], 10)

    with torch.no_grad():
        assert torch.equal(embed(encoder, ids, vectors), embed(encoder, ids, vectors.half()))


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="torch.compile needs an older Python")
def test_a_compiled_encoder_takes_the_prefix_of_each_call(vectors):
    """Compiled and warmed before the guard comes, it neither ignores the prefix nor keeps an old one."""
    pipe = tiny_pipe()
    ids = tokenize_with_prefix(pipe.tokenizer, ["a cat"], 10)
    plain = tokenize_with_prefix(pipe.tokenizer, ["a cat"], 0)
    with torch.no_grad():
        expected = [embed(pipe.text_encoder, ids, v) for v in (vectors, vectors + 1)]
        expected_plain = embed(pipe.text_encoder, plain)
        compiled = torch.compile(pipe.text_encoder, backend="eager")
        compiled(plain)

        found = [embed(compiled, ids, v) for v in (vectors, vectors + 1)]

        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        assert torch.equal(expected_plain, embed(compiled, plain))


class _TimeIsUp(BaseException):
    """As a time limit or Ctrl-C raises it, between any two lines."""


def test_an_interruption_anywhere_leaves_a_text_encoder_that_can_be_guarded(pipe):
    """Also while a layer is opened or closed for the prefix: the next call is exact, and the bare one too."""
    encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
    vectors = torch.ones(3, encoder.config.hidden_size)
    expected, bare = (encode_prompts(encoder, tokenizer, ["a man"], given) for given in (vectors, None))

    for point in itertools.count(1):
        lines = itertools.count(1)

        def on_line(frame, event, _, point=point, lines=lines):
            inside = frame.f_lineno > frame.f_code.co_firstlineno + 1  # not while the lock itself is let go
            if event == "line" and inside and next(lines) == point:
                raise _TimeIsUp
            return on_line

        former = sys.gettrace()
        sys.settrace(lambda frame, *_: on_line if frame.f_code.co_name in ("_open", "_close") else None)
        try:
            encode_prompts(encoder, tokenizer, ["a man"], vectors)
            break
        except _TimeIsUp:
            pass
        finally:
            sys.settrace(former)
        assert _active.get() is None  # or it would go on noting the rows of this thread
        assert torch.equal(encode_prompts(encoder, tokenizer, ["a man"], vectors), expected)
        assert torch.equal(encode_prompts(encoder, tokenizer, ["a man"]), bare)
    assert point > 5
