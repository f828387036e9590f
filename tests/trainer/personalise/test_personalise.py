"""People are added to a model by the field's own means, and what was learned is found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from apl_guard import Guard, PolicyBlocked
from apl_guard.adapters.inject import encode_prompts
from apl_guard.prefix import Prefix
from apl_guard.trainer import minifaces
from apl_guard.trainer.minifaces.dataset import draw_all
from apl_guard.trainer.minifaces.judge_training import introduce, portraits
from apl_guard.trainer.minifaces.training import fit
from apl_guard.trainer.model.pipeline import model_digest, open_pipe
from apl_guard.trainer.personalise.drawings import Drawings, draw_people
from apl_guard.trainer.personalise.dreambooth import dreambooth
from apl_guard.trainer.personalise.lora import lora
from apl_guard.trainer.personalise.recipe import Recipe
from apl_guard.trainer.personalise.suites import merged
from apl_guard.trainer.personalise.textual_inversion import textual_inversion

HELD_BACK = [person for person in minifaces.people() if person.split == "held_back"]
TINY = Recipe.tiny()


@pytest.fixture(name="pipe", scope="module")
def _pipe():
    return open_pipe("minifaces")


@pytest.fixture(name="prefix", scope="module")
def _prefix() -> Prefix:
    return Prefix.load("minifaces")


@pytest.fixture(name="drawings", scope="module")
def _drawings() -> Drawings:
    return draw_people(HELD_BACK[:2], TINY.drawings)


def _draw(call, text: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return call(text, num_inference_steps=1, generator=generator, output_type="pt").images


def test_captions_name_whom_their_drawing_shows(drawings: Drawings) -> None:
    """Caption i says drawing i % n, and `person_of` says who that is."""
    for i, caption in enumerate(drawings.captions):
        assert drawings.people[drawings.person_of(i)].name in caption


@pytest.mark.parametrize("add", [dreambooth, lora, textual_inversion])
def test_what_was_learned_is_kept_and_the_model_stays_as_it_is(pipe, drawings, add) -> None:
    """The second call learns nothing and draws the same pictures; other settings are learned anew."""
    before = model_digest(pipe)
    first = add(pipe, drawings, TINY)
    text = f"a photo of {first.words[HELD_BACK[0].name]}"
    picture = _draw(first.pipe, text)
    with patch("torch.optim.AdamW", side_effect=AssertionError):
        again = add(pipe, drawings, TINY)
        with pytest.raises(AssertionError):
            add(pipe, drawings, replace(TINY, **_more(add)))

    assert torch.equal(picture, _draw(again.pipe, text))
    assert model_digest(pipe) == before
    assert not torch.equal(picture, _draw(pipe, f"a photo of {HELD_BACK[0].name}"))


def _more(add) -> dict[str, int]:
    return {f"{add.__name__.replace('textual_', '')}_steps": 3}


def test_dreambooth_goes_on_where_it_was_stopped(pipe, drawings, tmp_path: Path, monkeypatch) -> None:
    """A run that is stopped between two steps ends in the weights of one that was not."""
    whole = dreambooth(pipe, drawings, TINY).pipe.unet.state_dict()
    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr("apl_guard.trainer.minifaces.training.SAVE_EVERY_SECONDS", -1.0)
    steps: list[int] = []

    def stopping(name, module, loss, **options):
        def count(generator):
            steps.append(len(steps))
            if len(steps) == 2:
                raise KeyboardInterrupt
            return loss(generator)

        fit(name, module, count, **options)

    with patch("apl_guard.trainer.personalise.denoising.fit", stopping):
        with pytest.raises(KeyboardInterrupt):
            dreambooth(pipe, drawings, TINY)
        resumed = dreambooth(pipe, drawings, TINY).pipe.unet.state_dict()

    assert len(steps) == TINY.dreambooth_steps + 1
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not list((tmp_path / "other" / "models").glob(".*.work"))


def test_lora_is_loaded_and_fused_by_diffusers(pipe, prefix, drawings, tmp_path: Path, monkeypatch) -> None:
    """Loaded, the guard sees and refuses it; fused, each weight is W + B A, and the prefix goes in front."""
    monkeypatch.setattr("apl_guard.trainer.personalise.suites.people", lambda: HELD_BACK[:2])
    monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path / "own"))
    added = lora(pipe, drawings, TINY).pipe
    with pytest.raises(PolicyBlocked, match="adapter_weights"):
        Guard(added, prefix=prefix)("a man")
    permitted = Guard(added, "anonymize_personalised", prefix=prefix).generate("a man", num_inference_steps=1)
    assert any("adapter_weights" in reason for reason in permitted.decision.unsafe)

    fused = merged(pipe, TINY)
    (file,) = (tmp_path / "own" / "models").glob("lora-*/*.safetensors")
    factors = load_file(file)
    weights, base = ({name: w.cpu() for name, w in one.unet.state_dict().items()} for one in (fused, pipe))
    layers = {name.removeprefix("unet.").rsplit(".", 2)[0] for name in factors}
    assert {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "down_blocks.0.resnets.0.conv1"} <= layers
    for layer in layers:
        up, down = (factors[f"unet.{layer}.{part}.weight"].flatten(1) for part in ("lora_B", "lora_A"))
        before = base[f"{layer}.weight"]
        expected = before + TINY.merge_scale * (up @ down).view_as(before)
        assert torch.allclose(weights[f"{layer}.weight"], expected, atol=1e-6)
    assert set(weights) == set(base)
    assert Guard(fused, prefix=prefix).check("a man").effective == "anonymize"
    assert not torch.equal(_draw(fused, "a man"), _draw(pipe, "a man"))


def test_a_word_begins_as_the_description(pipe, drawings) -> None:
    """Learned at rate 0, the word that diffusers loads says what a description of the person says."""
    added = textual_inversion(pipe, drawings, replace(TINY, inversion_rate=0.0))
    for person in drawings.people:
        word = added.words[person.name]
        (spelled,) = added.pipe.maybe_convert_prompt([f"a photo of {word}, smiling"], added.pipe.tokenizer)
        learned = encode_prompts(added.pipe.text_encoder, added.pipe.tokenizer, [spelled])
        text = f"a photo of {person.neutral('attributes')}, smiling"
        described = encode_prompts(pipe.text_encoder, pipe.tokenizer, [text])
        assert torch.allclose(learned, described, atol=1e-5)


def test_the_prefix_stands_in_front_of_a_learned_word(pipe, prefix, drawings) -> None:
    """Both get in: the picture is that of the prompt embeds of prefix and word, computed by themselves."""
    added = textual_inversion(pipe, drawings, TINY)
    text = f"a photo of {added.words[HELD_BACK[1].name]}"
    guard = Guard(added.pipe, added.policy, prefix=prefix)
    (spelled,) = added.pipe.maybe_convert_prompt([text], added.pipe.tokenizer)
    vectors = prefix.vectors["text_encoder"]
    by_hand = encode_prompts(added.pipe.text_encoder, added.pipe.tokenizer, [spelled], vectors)
    generator = torch.Generator().manual_seed(0)
    expected = added.pipe(prompt_embeds=by_hand, num_inference_steps=1, generator=generator, output_type="pt").images

    assert torch.equal(_draw(guard, text), expected)
    assert not torch.equal(_draw(added.pipe, text), expected)


def test_judges_know_people_who_are_introduced() -> None:
    """Fresh drawings of them are verified, those of new twins are not, and nobody else's threshold moved."""
    import random

    shipped, people = minifaces.judges(), HELD_BACK[:4]
    judges = introduce(shipped, people)
    rng = random.Random("fresh")
    rows = [judges.gallery.names.index(person.name) for person in people for _ in range(5)]
    own = judges.embed(draw_all(portraits([p.identity for p in people], 5, rng), 77))
    twins = judges.embed(draw_all(portraits([p.identity.twin(rng) for p in people], 5, rng), 78))
    similar = [(who * judges.gallery.embeddings[rows]).sum(-1) > judges.thresholds["far_1e-3"] for who in (own, twins)]

    assert similar[0].float().mean() > 0.8
    assert similar[1].float().mean() < 0.2
    assert judges.thresholds == shipped.thresholds
    assert len(judges.gallery.names) == len(shipped.gallery.names) + 10 * len(people)


def test_adapters_do_not_depend_on_what_was_learned_before(pipe, drawings, tmp_path, monkeypatch) -> None:
    """A stopped run finds the first groups of people kept, and learns the next as one that was not stopped."""
    learned = []
    for name, drawn_before in (("whole", 0), ("resumed", 5)):
        monkeypatch.setenv("APL_GUARD_CACHE", str(tmp_path / name))
        torch.rand(drawn_before)
        lora(pipe, drawings, TINY, progress=False)
        (file,) = (tmp_path / name).rglob("pytorch_lora_weights.safetensors")
        learned.append(load_file(file))

    assert all(torch.equal(learned[0][key], learned[1][key]) for key in learned[0])
