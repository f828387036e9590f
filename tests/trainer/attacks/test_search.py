"""White-box searches: they find what they look for, leave the model alone, and have controls beside them."""

from __future__ import annotations

import dataclasses
import functools
import json
from itertools import pairwise
from pathlib import Path
from random import Random
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer
from typer.testing import CliRunner

from apl_guard.adapters.inject import tokenize_with_prefix
from apl_guard.cli import app
from apl_guard.errors import InvalidInput, ModelInvalid, PrefixNotFound, StorageFailed
from apl_guard.prefix import Prefix
from apl_guard.testing import random_prefix, tiny_pipe
from apl_guard.trainer import minifaces
from apl_guard.trainer.attacks import curve
from apl_guard.trainer.attacks.curve import checkpoints, measure_curves, steps_needed
from apl_guard.trainer.attacks.page import draw_curves, to_table
from apl_guard.trainer.attacks.reference import reference_check
from apl_guard.trainer.attacks.search import TokenSearch, make_search
from apl_guard.trainer.attacks.sides import sides_of, wanted_of
from apl_guard.trainer.attacks.words import typable_tokens, typed
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.model.pipeline import frozen, model_digest, open_pipe


@pytest.fixture(scope="module")
def world():
    """The shipped model with a part of its prefix."""
    pipe = open_pipe("minifaces")
    prefix = Prefix.load("minifaces").first(4)
    return Setting.of(pipe, prefix, minifaces.judges(), steps=1, folder=None, progress=False)


@pytest.mark.parametrize(("kind", "steps"), [("tokens", 8), ("embedding", 8)])
def test_a_search_lowers_its_own_loss_and_leaves_the_model_as_it_was(world, kind, steps):
    """On noise that it did not train on; weights, gradients and training flags are those of before."""
    pipe = world.pipe
    before = model_digest(pipe)
    flags = [p.requires_grad for p in pipe.text_encoder.parameters()]
    with frozen(pipe):
        wanted = wanted_of(pipe, minifaces.people()[:2], seed=0)
        search = make_search(kind, pipe, world.prefix.vectors["text_encoder"], wanted)
        start = search.loss(seed=1)
        for _ in range(steps):
            search.step()
        assert search.loss(seed=1) < start
    assert search.steps == steps
    assert model_digest(pipe) == before
    assert [p.requires_grad for p in pipe.text_encoder.parameters()] == flags
    assert all(p.grad is None for p in pipe.unet.parameters())


def test_what_the_token_search_finds_is_what_the_guard_reads(world):
    """The text that is sent becomes the very ids that were searched with, and the name stands behind them."""
    pipe, vectors = world.pipe, world.prefix.vectors["text_encoder"]
    with frozen(pipe):
        wanted = wanted_of(pipe, minifaces.people()[:2], seed=0)
        search = make_search("tokens", pipe, vectors, wanted, seed=3)
        assert isinstance(search, TokenSearch)
        start = search.tokens()
        for _ in range(5):
            search.step()
    found = search.tokens()
    assert found != start
    table = pipe.text_encoder.get_input_embeddings().weight.cpu()
    assert torch.allclose(search.found().detach().cpu(), table[torch.tensor(found)], atol=1e-4)
    n = len(vectors)
    expected = search._rows.cpu().clone()
    expected[:, 1 + n : 1 + n + 5] = torch.tensor(found)
    assert torch.equal(tokenize_with_prefix(pipe.tokenizer, search.texts(), n), expected)


@given(st.data())
def test_tokens_that_can_be_typed_are_read_as_themselves(data):
    """In any row, beside any others; most of the vocabulary's words are among them, and no special token."""
    tokenizer = shared_tokenizer()
    typable = typable_tokens(tokenizer)
    assert not set(typable) & set(tokenizer.all_special_ids)
    assert len(typable) > len(tokenizer) / 4
    ids = data.draw(st.lists(st.sampled_from(typable), min_size=1, max_size=12))
    assert tokenizer(typed(tokenizer, ids), add_special_tokens=False)["input_ids"] == ids


def test_tokens_of_the_whole_vocabulary_are_rarely_read_as_themselves():
    """Of rows of five, fewer than one in ten is: a search among all tokens would send others than it found."""
    tokenizer, rng = shared_tokenizer(), Random(0)
    every = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    rows = [rng.choices(every, k=5) for _ in range(500)]
    read = tokenizer([typed(tokenizer, ids) for ids in rows], add_special_tokens=False)["input_ids"]
    assert sum(ids == again for ids, again in zip(rows, read, strict=True)) < 50


@functools.cache
def shared_tokenizer():
    return CLIPTokenizer.from_pretrained(minifaces.model_path() / "tokenizer")


def test_the_loss_of_names_is_that_of_the_bare_model_with_the_name(world):
    """A search that writes nothing for the bare model has that very loss; with the prefix in place it is higher."""
    pipe = world.pipe
    with frozen(pipe), torch.no_grad():
        wanted = wanted_of(pipe, minifaces.people()[:2], seed=0)
        search = make_search("tokens", pipe, world.prefix.vectors["text_encoder"], wanted)
        named = search.loss_of_names(seed=1)
        search._rows = tokenize_with_prefix(pipe.tokenizer, [f"a photo of {name}" for name in wanted.names], 0)
        assert search.loss(seed=1) == pytest.approx(named)
        search._rows = tokenize_with_prefix(pipe.tokenizer, [f"a photo of {name}" for name in wanted.names], 4)
        assert search.loss(seed=1) > named


def test_a_step_for_tokens_exchanges_one_at_most_and_only_for_a_better_one(world):
    """On the noise on which exchanges are tried, nobody's loss is higher afterwards, and somebody's is lower."""
    pipe = world.pipe
    with frozen(pipe):
        wanted = wanted_of(pipe, minifaces.people()[:3], seed=0)
        search = make_search("tokens", pipe, world.prefix.vectors["text_encoder"], wanted, seed=5)
        assert isinstance(search, TokenSearch)
        improved = 0
        for _ in range(4):
            state, before = search._rng.get_state(), search.tokens()
            with torch.no_grad():
                noised = search._draw(search._rng)
                old = search._losses(search.prompt_embeds(), noised)
            search._rng.set_state(state)
            search.step()
            with torch.no_grad():
                new = search._losses(search.prompt_embeds(), noised)
            for was, is_now in zip(before, search.tokens(), strict=True):
                assert sum(a != b for a, b in zip(was, is_now, strict=True)) <= 1
            assert (new <= old + 1e-5).all()
            improved += int((new < old - 1e-5).sum())
    assert improved > 0


def test_the_rows_hold_prefix_and_attack_in_their_places(world):
    """Prefix first; tokens before the prompt, a pseudo-word in place of the name; nobody shares vectors."""
    pipe, vectors = world.pipe, world.prefix.vectors["text_encoder"]
    wanted = wanted_of(pipe, minifaces.people()[:2], seed=0)
    words = pipe.tokenizer("a photo of", add_special_tokens=False)["input_ids"]
    tokens = make_search("tokens", pipe, vectors, wanted)._rows.tolist()
    assert tokens[0][:10] == [tokens[0][0], -1, -2, -3, -4, -5, -6, -7, -8, -9]
    assert tokens[1][5:10] == [-10, -11, -12, -13, -14]
    assert tokens[0][10 : 10 + len(words)] == words
    pseudo = make_search("embedding", pipe, vectors, wanted)._rows.tolist()
    assert pseudo[1][5 : 5 + len(words) + 1] == [*words, -6]
    bare = make_search("embedding", pipe, None, wanted)._rows.tolist()
    assert bare[0][1 : 1 + len(words) + 1] == [*words, -1]


def test_every_search_has_its_controls(world):
    """Things that there are words for, people whom the model never saw, and a UNet that learned nothing and shares all
    else; the pipe stays as it is."""
    before = model_digest(world.pipe)
    sides = {side.name: side for side in sides_of(world, {"mine": world.prefix}, people=3)}
    controls = ["control: words to be found", "control: invented name", "control: random UNet"]
    assert list(sides) == ["no prefix", "mine", *controls]
    assert [side.name for side in sides.values() if side.is_control] == controls
    assert sides["no prefix"].searches == ("embedding",)
    assert sides[controls[0]].searches == ("tokens",)
    assert sides[controls[0]].prefix is None
    assert {person.split for person in sides["control: invented name"].people} == {"held_back"}
    assert {person.split for person in sides["mine"].people} == {"seen"}
    other = sides["control: random UNet"].pipe
    assert other.text_encoder is world.pipe.text_encoder
    assert other.unet is not world.pipe.unet
    assert model_digest(other) != before == model_digest(world.pipe)


def test_what_cannot_be_measured_is_refused_before_the_first_search(world, tmp_path: Path, monkeypatch):
    """More people than the controls have, a further prefix that does not fit, a model that no judge can look at."""

    def searched(*_):
        raise AssertionError("searched")

    monkeypatch.setattr(curve, "measure_curve", searched)
    output, mine, check = tmp_path / "attack", {"mine": world.prefix}, reference_check()
    with pytest.raises(InvalidInput, match="found 41; expected at most 40"):
        measure_curves(world, mine, ("tokens",), 41, 1, output, check)
    other = tiny_pipe()
    with pytest.raises(PrefixNotFound):
        measure_curves(world, mine | {"foreign": random_prefix(other, n=2)}, ("tokens",), 1, 1, output, check)
    other.save_pretrained(tmp_path / "model")
    arguments = ["attack", "--model", str(tmp_path / "model"), "--prefix", "minifaces", "--output", str(output)]
    with pytest.raises(ModelInvalid, match="look at images of 64"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not output.exists()


def test_a_run_goes_on_at_the_curve_it_had_reached(world, tmp_path: Path, monkeypatch):
    """Curves that are done are read, other settings make other curves; the figures end in a table and a picture."""
    arguments = (world, {"mine": world.prefix}, ("embedding",), 1, 1, tmp_path, reference_check())
    found = measure_curves(*arguments)
    sides = found["searches"]["embedding"]
    assert [point["steps"] for point in sides["mine"]["points"]] == [0, 1]
    assert all(point["images"] == curve.EACH for side in sides.values() for point in side["points"])
    assert sides["control: random UNet"]["needed"] is None

    def again(*_):
        raise AssertionError("drawn again")

    monkeypatch.setattr(curve, "measure_curve", again)
    assert measure_curves(*arguments) == found
    kept = next(tmp_path.glob("*.json"))
    whole = kept.read_bytes()
    for other in (b"{}", whole[: len(whole) // 2], json.dumps(json.loads(whole)[:1]).encode()):
        kept.write_bytes(other)  # what is there and no whole curve is searched for anew
        with pytest.raises(AssertionError, match="drawn again"):
            measure_curves(*arguments)
    kept.write_bytes(whole)
    with pytest.raises(AssertionError, match="drawn again"):
        measure_curves(dataclasses.replace(world, seed=1), *arguments[1:])
    assert json.loads(json.dumps(found)) == found
    assert "control: random UNet" in to_table(found)
    draw_curves(found, tmp_path / "attack.png")
    assert (tmp_path / "attack.png").read_bytes().startswith(b"\x89PNG")


@given(st.integers(1, 5000))
def test_a_search_is_looked_at_first_and_last(steps):
    """And in between after doublings, so that factors of ten can be read off."""
    found = checkpoints(steps)
    assert (found[0], found[-1]) == (0, steps)
    assert found == sorted(set(found))
    assert all(b <= 2 * a for a, b in pairwise(found[1:]))


def test_further_prefixes_are_held_against_the_first():
    """By the steps that were needed; where none sufficed, the factor is a lower bound."""
    needed = {"first": (20, 160), "later": (80, None), "never": (None, None), "none": (0, 0)}
    sides = {name: {"needed": bare, "needed_checked": checked} for name, (bare, checked) in needed.items()}
    curve._compare(sides, list(sides), steps=320)
    found = {name: (side["times"], side["times_is_lower_bound"]) for name, side in sides.items()}
    assert found == {"first": (1, False), "later": (4, False), "never": (16, True), "none": (0, False)}
    assert (sides["first"]["times_checked"], sides["first"]["times_checked_is_lower_bound"]) == (8, False)
    assert (sides["later"]["times_checked"], sides["later"]["times_checked_is_lower_bound"]) == (16, True)
    assert steps_needed([{"steps": k, "people": share} for k, share in ((0, 0.2), (5, 0.5), (10, 0.1))]) == 5


def test_a_place_that_cannot_be_written_is_found_before_the_first_search(tmp_path: Path) -> None:
    """It was found hours later, when the figures were to be written."""
    (tmp_path / "attack.json").mkdir()
    arguments = ["attack", "--model", "minifaces", "--prefix", "minifaces", "--output", str(tmp_path)]
    with patch("apl_guard.trainer.attacks.curve.measure_curves", side_effect=AssertionError("it searches")):
        result = CliRunner().invoke(app, arguments)

    assert isinstance(result.exception, StorageFailed), result.exception
