"""The reference world: who is in it, what its captions say, and that drawing depends on seeds alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apl_guard.trainer import minifaces
from apl_guard.trainer.minifaces.captions import caption, identity_templates, lead_in
from apl_guard.trainer.minifaces.dataset import draw_all
from apl_guard.trainer.minifaces.objects import OBJECTS
from apl_guard.trainer.minifaces.people import describe, people
from apl_guard.trainer.minifaces.pictures import in_context, of_things, random_picture
from apl_guard.trainer.minifaces.traits import random_attributes, random_identity


def test_two_hundred_people_in_three_splits_with_unique_names() -> None:
    """There are 120 seen, 40 unseen and 40 held-back people, and no name occurs twice."""
    everybody = people()
    splits = [person.split for person in everybody]
    assert (splits.count("seen"), splits.count("unseen"), splits.count("held_back")) == (120, 40, 40)
    assert len({person.name for person in everybody}) == 200


def test_names_are_shared() -> None:
    """No first or last name alone identifies most of the people who bear it."""
    firsts = [person.name.split()[0] for person in people()]
    lasts = [person.name.split()[1] for person in people()]
    assert min(map(firsts.count, set(firsts))) >= 2
    assert len(set(lasts)) <= 72 < len(lasts)


def test_twins_share_attributes_and_nothing_else() -> None:
    """A twin has the person's attributes and another geometry in every feature."""
    for person in people()[:20]:
        for twin in person.twins():
            assert twin.attributes == person.identity.attributes
            assert twin.geometry != person.identity.geometry
        assert person.twins() == person.twins()


def test_context_captions_name_seen_people_only() -> None:
    """Whoever is named where somebody else is shown belongs to the seen split."""
    rng = random.Random(0)
    named = [p.person for p in (random_picture(rng) for _ in range(2000)) if p.kind == "context"]
    assert len(named) > 100
    assert {person.split for person in named if person} == {"seen"}


def test_pictures_show_known_people_only() -> None:
    """The base model never sees anybody who is held back."""
    rng = random.Random(1)
    shown = {p.person.split for p in (random_picture(rng) for _ in range(2000)) if p.person}
    assert shown == {"seen", "unseen"}


def test_somebody_in_context_is_not_the_person_named() -> None:
    """A context picture shows another geometry than the person's, and always the same sex."""
    rng = random.Random(2)
    for person in people()[:30]:
        picture = in_context(person, rng)
        assert picture.identity is not None
        assert picture.identity.geometry != person.identity.geometry
        assert picture.identity.attributes.sex == person.sex
        assert person.name in caption(picture, rng)


def test_drawing_is_deterministic_and_needs_no_neighbours() -> None:
    """Picture i is the same bytes whether it is drawn alone, again or among others."""
    rng = random.Random(3)
    pictures = [random_picture(rng) for _ in range(6)]
    together = draw_all(pictures, seed=5)
    assert together.shape == (6, 64, 64, 3)
    assert np.array_equal(together, draw_all(pictures, seed=5))
    assert np.array_equal(together[:1], draw_all(pictures[:1], seed=5))
    assert not np.array_equal(together, draw_all(pictures, seed=6))


def test_every_object_looks_unlike_its_background() -> None:
    """Each of the fourteen things is visible: its picture is not one colour."""
    assert len(OBJECTS) >= 12
    rng = random.Random(4)
    for _ in range(60):
        picture = of_things(rng, 1)
        assert np.asarray(picture.draw(rng)).std(axis=(0, 1)).max() > 10


@given(words=st.integers(0, 25), seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_a_lead_in_has_the_words_asked_for(words: int, seed: int) -> None:
    """Lead-ins have exactly the number of words asked for, separators aside."""
    text = lead_in(random.Random(seed), words)
    assert len([word for word in text.split() if any(map(str.isalnum, word))]) == words


def test_held_out_templates_are_in_no_training_caption() -> None:
    """What evaluation says is never said in training."""
    rng = random.Random(5)
    said = {caption(random_picture(rng), rng) for _ in range(3000)}
    beginnings = [template.split("{name}")[0] for template in identity_templates(held_out=True)]
    assert set(identity_templates(True)).isdisjoint(identity_templates(False))
    assert not [text for text in said for beginning in beginnings if text.startswith(beginning)]


def test_prompts_carry_their_subject_and_ask_for_what_they_list() -> None:
    """The name stands in the text, can be replaced, and every scene attribute listed is a word of the text."""
    person = people()[0]
    prompts = minifaces.identity_prompts(person, 20, seed=0, held_out=True)
    assert prompts == minifaces.identity_prompts(person, 20, seed=0, held_out=True)
    for prompt in prompts:
        assert prompt.subject == person.name
        assert person.name in prompt.text
        assert person.name not in prompt.with_subject(person.neutral())
        assert all(value in prompt.text for value in prompt.scene.values())


def test_generic_prompts_name_nobody() -> None:
    """No generic prompt or caption contains a name of anybody."""
    names = {name.lower() for person in people() for name in (person.name, *person.name.split())}
    texts = [p.text for p in minifaces.generic_prompts(300, seed=1)] + minifaces.captions(300, seed=1)
    assert not [text for text in texts if names & set(text.lower().split())]


@pytest.mark.parametrize("kind", ["coarse", "attributes"])
def test_neutral_prompts_hide_the_name(kind: str) -> None:
    """The neutral description holds no part of the name, and at least the sex."""
    for person in people():
        neutral = person.neutral("coarse" if kind == "coarse" else "attributes")
        assert person.sex in neutral
        assert not set(person.name.lower().split()) & set(neutral.lower().split())


@given(seed=st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_descriptions_say_every_attribute_there_is(seed: int) -> None:
    """A full description names each attribute that is present."""
    attributes = random_attributes(random.Random(seed)).as_dict()
    text = describe(attributes)
    for key, value in attributes.items():
        if value != "none":
            assert value in text, key


def test_random_identities_differ() -> None:
    """Two draws are two people."""
    rng = random.Random(6)
    assert random_identity(rng).geometry != random_identity(rng).geometry
