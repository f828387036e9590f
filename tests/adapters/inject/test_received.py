"""What a text encoder received and gave, counted for each prompt by itself."""

from types import SimpleNamespace

import pytest
import torch

from apl_guard.adapters.inject.received import Received

PLAIN = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[6.0, 0.0], [0.0, 8.0]], [[1.0, 0.0], [0.0, 0.0]]])  # (B, L, D)
MOVED = torch.tensor([[[0.0, 0.0], [0.3, 0.4]], [[0.0, 2.0], [0.0, 0.0]], [[5.0, 5.0], [5.0, 5.0]]])
HAS_PREFIX = torch.tensor([True, True, False])


def prompt(token):
    """A token of a prompt, coded."""
    return -(1 << 20) - token


def received(*batches):
    made = Received(torch.zeros(3, 2), padding=None)
    for ids in batches:
        made.take(torch.tensor(ids))
    return made


@pytest.mark.parametrize(
    "answer",
    [
        lambda hidden: hidden,
        lambda hidden: (hidden, torch.zeros(1)),
        lambda hidden: SimpleNamespace(hidden_states=(torch.zeros_like(hidden), hidden)),
    ],
    ids=["a tensor", "a tuple", "all layers"],
)
def test_the_change_is_that_of_each_prompt_by_itself(answer):
    """‖with − without‖ / ‖without‖ over all its tokens: one that nothing moved does not pass for its neighbour."""
    made = received()
    made.compare(answer(PLAIN + MOVED), answer(PLAIN), HAS_PREFIX)

    assert made.changes == (0.1, 0.2)
    made.compare(answer(PLAIN), answer(PLAIN), HAS_PREFIX)
    assert made.changes == (0.1, 0.2, 0.0, 0.0)


def test_answers_with_the_tokens_first_are_turned():
    """ChatGLM gives (L, B, D)."""
    made = received()
    made.compare((PLAIN + MOVED).transpose(0, 1), PLAIN.transpose(0, 1), HAS_PREFIX, tokens_first=True)

    assert made.changes == (0.1, 0.2)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(None, PLAIN), (PLAIN, None), (PLAIN, PLAIN[:, :1]), (PLAIN[:2], PLAIN)], ids=range(4)
)
def test_answers_that_cannot_be_compared_are_no_change(ours, theirs):
    """So one is missing, and the guard releases nothing."""
    made = received()
    made.compare(ours, theirs, HAS_PREFIX)

    assert made.changes == ()


def test_the_prefix_counts_where_it_is_whole_and_in_order():
    """One count for each row that has any of it; those without are kept as they are."""
    whole, plain = [9, -1, -2, -3, 5, 9], [9, 5, 6, 7, 8, 9]
    broken = [[9, -1, -3, -2, 5, 9], [9, -1, 5, -2, -3, 9], [9, -2, -3, 5, 6, 9], [9, -1, -2, -3, -1, 9]]

    made = received([whole, plain], broken)

    assert made.rows == (3, 0, 0, 0, 0)
    assert made.plain_rows == [plain]


def test_a_prefix_behind_a_part_of_its_prompt_counts_as_none():
    """What stands before it was read without it. A template may stand there."""
    assert received([[9, 5, -1, -2, -3, prompt(6)], [9, prompt(6), -1, -2, -3, 9]]).rows == (3, 0)


def test_what_the_embedding_layer_was_given_counts():
    """The codes are those of what the text encoder was given, if it handed that on, as it was at that moment."""
    coded = torch.tensor([[9, -1, -2, -3, prompt(5), 9]])
    made = received()
    for ids in ([[9, -1, -2, -3, 5, 9]], [[9, 0, 0, 0, 5, 9]]):
        with made.reading(coded):
            given = torch.tensor(ids)
            made.take(given)
            given[:] = 0
    with made.reading(coded):
        coded[:] = 0
        made.take(torch.tensor([[9, -1, -2, -3, 5, 9]]))

    assert made.rows == (3, 3)
    assert made.plain_rows == [[9, 0, 0, 0, 5, 9]]


def test_what_runs_for_comparison_counts_as_nothing_received():
    """The second pass is the guard's own."""
    made = received([[9, -1, -2, -3, 5, 9]])
    with made.comparing():
        made.take(torch.tensor([[9, 5, 6, 7, 8, 9]]))
    made.take(torch.tensor([[9, -1, -2, 5, 6, 9]]))

    assert (made.rows, made.plain_rows) == ((3, 2), [])
