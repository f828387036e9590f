"""What docs/policies.md says about names that are found, line by line, and what names in disguise must not unlock."""

import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apl_guard.detect.borders import _SMALL_WORDS
from apl_guard.detect.disguises import undisguised
from apl_guard.detect.names import NamesIndex
from apl_guard.policy import Names
from apl_guard.request.canonical import as_it_looks, canonical

PAGE = Path(__file__).parents[1] / "docs" / "policies.md"


def rows(heading):
    """Names and texts of the table with this heading: of one name all texts, of several each its own."""
    table = PAGE.read_text(encoding="utf-8").split(f"| on the list | {heading} |", 1)[1].split("\n\n", 1)[0]
    for line in table.splitlines()[2:]:
        cells = line.split("|")
        names, texts = (re.findall("`([^`]+)`", cell) for cell in cells[1:3])
        yield from zip(names * len(texts) if len(names) == 1 else names, texts, strict=True)


def found(name, text, **others):
    index = NamesIndex([Names(id="stars", people=[{"name": name}], **others)])
    text = canonical(text)
    return [text[match.start : match.end] for match in index.find(text)]


FOUND, NOT_FOUND = [*rows("found in")], [*rows("not found in | because")]


@pytest.mark.parametrize(("name", "text"), FOUND)
def test_what_the_page_says_is_found(name, text):
    """Alone, and between other words."""
    assert found(name, text)
    assert found(name, f"x {text} y")


@pytest.mark.parametrize(("name", "text"), NOT_FOUND)
def test_what_the_page_says_is_not_found(name, text):
    """So that nobody relies on it, and nobody is refused for it."""
    assert found(name, text) == []


def test_the_page_has_both_tables():
    """An empty table would prove nothing."""
    assert len(FOUND) > 40
    assert len(NOT_FOUND) > 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two Mara Vosses dance", "Mara Vosses"),
        ("Mara Vosss dog", "Mara Vosss"),
        ("see M4ra V0ss!", "M4ra V0ss"),
        ("see Mara 'Fox' Voss", "Mara 'Fox' Voss"),
        ("@m4ra_v0ss1 here", "m4ra_v0ss"),
        ("2m4ra V0ss99", "m4ra V0ss"),
        ("see M@r@ Vo$$.", "M@r@ Vo$$"),
        ("see @m@r@ v0ss.", "m@r@ v0ss"),
        ("see Mara 22 Voss.", "Mara 22 Voss"),
        ("see mara_2_voss2.", "mara_2_voss"),
        ("see mara2voss.", "mara2voss"),
        ("see Mara E. Voss.", "Mara E. Voss"),
        ("see Mara E Voss.", "Mara E Voss"),
        ('see Mara "the Fox" Voss.', 'Mara "the Fox" Voss'),
        ("at /Mara%20Voss/x", "Mara%20Voss"),
        ("at /Mara%20Vos%73", "Mara%20Vos%73"),
        ("my maraaaa voss pic", "maraaaa voss"),
        ("my mara vosssss pic", "mara vosssss"),
        ("photoOfMaraVossAtHome", "MaraVoss"),
    ],
)
def test_all_of_a_disguised_name_is_replaced(text, expected):
    """Nothing of the disguise is left in a text that is rewritten."""
    assert found("Mara Voss", text) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        *("two Mara Vosses", "M4ra V0ss", "Mara E. Voss", 'Mara "X" Voss', "maraaaa voss", "photoOfMaraVoss"),
        *("/Mara%20Voss", "mara vosss dog"),
    ],
)
def test_who_consents_is_known_only_as_written(text):
    """John Edward on the list of those who may be drawn says nothing about John Edwards."""
    assert found("Mara Voss", text) != []
    assert found("Mara Voss", text, role="consenting") == []
    assert found("Mara Voss", "see Mara Voss's dog", role="consenting") == ["Mara Voss"]
    assert found("Voss, Mara", "see Mara Voss's dog", role="consenting") == ["Mara Voss"]
    for name, other in (
        ("Dr. Mara Voss", "Mara Voss"),
        ("Mara Voss (actress)", "Mara Voss"),
        ("J\u00fcrgen M\u00fcller", "Juergen Mueller"),
    ):
        assert found(name, other) != []
        assert found(name, other, role="consenting") == []


CASED = {
    "latin": "abcdefghijklmnopqrstuvwxyz\u00e9\u00f1\u0142\u00f8",
    "greek": "".join(map(chr, [0x3AC, 0x3AE, *range(0x3B1, 0x3C2), *range(0x3C3, 0x3CA)])),
    "cyrillic": "".join(map(chr, range(0x430, 0x460))),
    "armenian": "".join(map(chr, range(0x561, 0x587))),
}


@given(st.data(), st.sampled_from(sorted(CASED)))
def test_capitals_and_small_letters_are_the_same(data, script):
    """Also where they look like different letters of other scripts."""
    words = st.text(st.sampled_from(CASED[script]), min_size=4, max_size=6)
    name = f"{data.draw(words)} {data.draw(words)}"
    cases = [name.upper(), name.lower(), name.title(), name.upper().lower()]

    for listed in cases:
        for written in cases:
            assert found(listed, f"1 {written} 2"), (listed, written)


def test_a_disguised_name_is_found_beside_the_same_name_in_plain_letters():
    """Also where several lists have it."""
    lists = [{"name": "Mara Voss"}, {"name": "M\u00e1ra Voss", "neutral": "her"}]
    index = NamesIndex(Names(id=f"list{number}", people=[each]) for number, each in enumerate(lists))
    text = "Mara Voss beside M4ra V0ss and 35mm"

    assert {(m.neutral, text[m.start : m.end]) for m in index.find(text)} == {
        (neutral, name) for neutral in ("a person", "her") for name in ("Mara Voss", "M4ra V0ss")
    }


def test_small_words_of_arabic_and_hebrew_are_no_part_of_what_is_replaced():
    """And names that begin like one are others."""
    assert found(
        "\u0645\u062d\u0645\u062f \u0635\u0644\u0627\u062d", "\u0644\u0645\u062d\u0645\u062f \u0635\u0644\u0627\u062d"
    ) == ["\u0645\u062d\u0645\u062f \u0635\u0644\u0627\u062d"]
    assert found("\u0623\u0645\u0644", "\u0643\u0627\u0645\u0644") == []
    assert found("\u05e8\u05d5\u05df \u05db\u05d4\u05df", "\u05e9\u05e8\u05d5\u05df \u05db\u05d4\u05df") == []


@pytest.mark.parametrize("word", sorted(_SMALL_WORDS))
def test_a_name_is_found_behind_each_small_word(word):
    """Of one letter and of two; the word itself is not replaced."""
    name = (
        "\u05e8\u05d5\u05df \u05db\u05d4\u05df"
        if word < "\u0600"
        else "\u0645\u062d\u0645\u062f \u0635\u0644\u0627\u062d"
    )

    assert found(name, f"{word}{name}") == [name]


def test_a_thai_name_does_not_end_within_a_syllable():
    """Vowels stand before, behind, above and below their consonant."""
    assert found("\u0e21\u0e32\u0e25", "\u0e21\u0e32\u0e25\u0e32") == []
    assert found("\u0e21\u0e32\u0e25", "\u0e40\u0e21\u0e32\u0e25") == []
    assert found("\u0e21\u0e32\u0e25", "\u0e21\u0e32\u0e25\u0e34") == []
    assert found("\u0e21\u0e32\u0e25", "\u0e02\u0e2d\u0e07\u0e21\u0e32\u0e25\u0e22\u0e34\u0e49\u0e21") == [
        "\u0e21\u0e32\u0e25"
    ]


def test_turkish_and_ewe_stay_as_they_are_written():
    """Their letters look like others and are their own; beside letters of another script they are a disguise."""
    for text in ("k\u0131rm\u0131z\u0131 \u0131\u015f\u0131k", "\u028b\u0254nu", "\u0263letivi"):
        assert canonical(text) == text
    assert canonical("m\u0430r\u0131") == "mari"
    assert as_it_looks("k\u0131rm\u0131z\u0131 \u0430") == "kirmizi \u0430"


@given(st.text(st.sampled_from('Mara Voss 013$@!%20.(")\u00fc-\u0435'), max_size=60))
def test_a_reading_lies_in_its_text(text):
    """Each letter comes from a place, in order; a form is never the text itself."""
    text = canonical(text)
    forms = list(undisguised(text))

    assert text not in [form.text for form in forms]
    assert len({form.text for form in forms}) == len(forms)
    for form in forms:
        assert len(form.places) == len(form.text)
        assert list(form.places) == sorted(form.places)
        assert all(0 <= place < len(text) for place in form.places)


LEET = {"a": "4@", "e": "3", "o": "0", "s": "5$", "t": "7", "b": "8"}


@given(
    st.randoms(use_true_random=False),
    st.sampled_from(["otto beisel", "selina stolt", "basil toeltsch"]),
    st.sampled_from([{"i": "1!", "l": "|"}, {"i": "!", "l": "1|"}]),
)
def test_letters_behind_digits_and_signs_are_found(choose, name, one):
    """Every letter but the first and the last of a word may be one; a 1 always an i, or always an l."""
    looks = LEET | one

    def hide(word):
        return word[0] + "".join(choose.choice(letter + looks.get(letter, "")) for letter in word[1:-1]) + word[-1]

    hidden = " ".join(map(hide, name.split()))
    assert found(name, f"a photo of {hidden} at sea") == [hidden]


@pytest.mark.parametrize("hostile", ['Mara "', "M4", "a%41", "(a) ", "E. ", "\u00fc", "aaa", "$@!|", "s", "\u0644"])
def test_no_text_takes_long(hostile):
    """The largest text that a policy may let in, in a time that grows no faster than the text."""
    index = NamesIndex([Names(id="stars", people=[{"name": "Mara Voss"}, {"name": "\u0645\u062d\u0645\u062f"}])])

    def seconds(letters):
        text = canonical((hostile * letters)[:letters])
        began = time.perf_counter()
        index.find(text)
        return time.perf_counter() - began

    seconds(2_000)
    assert seconds(160_000) < 40 * max(seconds(20_000), 0.01)


def test_ordinary_prompts_name_nobody_in_disguise():
    """Of 20,000 names, none is found in prompts of numbers, sizes and signs, as they are found in none without."""
    choose = random.Random(1)
    syllables = ["ka", "ma", "ra", "vo", "ss", "ti", "en", "lo", "ber", "gri", "sha", "ed", "al", "is"]
    people = {" ".join("".join(choose.choices(syllables, k=2)).title() for _ in range(2)) for _ in range(20_000)}
    index = NamesIndex([Names(id="stars", people=[{"name": name} for name in sorted(people)])])

    for text in (
        "35mm f1.8 photo, 8k uhd, 4K, hdr10, 1girl, iso 400, $5 coffee, 50% off, 3d render @studio!!",
        "masterpiece, (best quality:1.3), ((8k)), [soft], 2boys, 16:9, 1990s, b&w, a1111, v2.1, sd1.5",
        "so coooool, niiiice, aaaah, www.example.org/a%20b?q=1&x=%C3%BC",
    ):
        assert index.find(canonical(text)) == []
