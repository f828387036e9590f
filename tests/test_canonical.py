"""Canonical texts: what looks the same becomes the same, and nothing invisible is left."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apl_guard.request.canonical import canonical
from apl_guard.request.confusables import LOOKS_LIKE
from apl_guard.request.spelling import Break, letters_of, spelling


@given(st.text(st.characters()))
def test_canonical_is_final_and_holds_nothing_invisible(text):
    """Made canonical twice it is the same; any code points, surrogates among them."""
    made = canonical(text)

    assert canonical(made) == made
    assert made == " ".join(made.split())
    assert unicodedata.is_normalized("NFKC", made)
    assert not {unicodedata.category(letter) for letter in made} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(st.from_regex(r"[!-~]+( [!-~]+)*", fullmatch=True))
def test_plain_english_stays_as_it_is(text):
    """A policy that looks at texts does not change an ordinary prompt."""
    assert canonical(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\uff2d\uff41\uff52\uff41", "Mara"),  # full width
        ("M\u200ba\u2060r\ufeffa", "Mara"),  # zero width
        ("\u202eMara\u202c", "Mara"),  # bidirectional
        ("M\U000e0061ara\ufe0f", "Mara"),  # tags and variation selectors
        ("M\u00ada\u034fra\u3164", "Mara"),  # soft hyphen, joiner, filler
        ("M\u0430r\u0430", "Mara"),  # Cyrillic in a Latin word
        ("\u039cara", "Mara"),  # Greek
        ("\u1d0d\u1d00\u0280\u1d00", "mara"),  # small capitals
        ("\U0001d40c\U0001d41a\U0001d42b\U0001d41a", "Mara"),  # mathematical bold
        ("\u24dc\u24d0\u24e1\u24d0", "mara"),  # circled
        ("Mara\u00a0\u2003Voss\r\n\tsmiles\u2028.", "Mara Voss smiles ."),
        ("a\x00b\x1b[1;31mc\x9b0md\x1b", "abcd"),  # what terminals obey
        ("\u043a\u043e\u0442", "\u043a\u043e\u0442"),  # a Russian word stays Russian
        ("\u03b1\u03b2\u03b3", "\u03b1\u03b2\u03b3"),
        ("Beyonc\u0065\u0301", "Beyonc\u00e9"),
        ("Beyonc\u0065\u200d\u0301", "Beyonc\u00e9"),  # what stood between a letter and its accent is gone
        ("M\u0131r\u0430", "Mira"),  # a Turkish letter in a word that mixes scripts
        ("\ud800", "\ufffd"),
    ],
)
def test_what_looks_the_same_becomes_the_same(text, expected):
    """Each way of hiding a name, and what must not be touched."""
    assert canonical(text) == expected


@given(st.text(st.characters()))
def test_a_spelling_says_where_each_letter_comes_from(text):
    """Places go up and lie in the text; the letters are spelt as themselves."""
    text = canonical(text)
    spelt = spelling(text)

    assert len(spelt.letters) == len(spelt.places) == len(spelt.breaks)
    assert list(spelt.places) == sorted(spelt.places)
    assert all(0 <= place < len(text) for place in spelt.places)
    assert spelling(spelt.letters).letters == spelt.letters
    assert letters_of(text) == spelt.letters


@given(st.text(st.sampled_from("abcXYZ 019.,-'\u00e9\u00df"), max_size=40))
def test_the_spelling_of_simple_text_is_its_letters(text):
    """Held against an independent way to get them."""
    plain = unicodedata.normalize("NFD", text.replace("\u00df", "ss").lower())

    assert spelling(canonical(text)).letters == re.sub(r"[^a-z0-9]", "", plain)


@pytest.mark.parametrize("mark", ["\u0301", "\u0640", "\u07fa"])
def test_accents_and_strokes_that_stretch_a_word_set_no_letter_apart(mark):
    """A sign and a space do, each in its way."""
    assert spelling(f"q{mark}m").breaks == spelling("qm").breaks == (Break.SPACE, Break.NONE)
    assert spelling(f"q{mark}-m").breaks == (Break.SPACE, Break.SIGN)
    assert spelling(f"q- {mark}m").breaks == (Break.SPACE, Break.SPACE)


def test_an_accent_on_a_lookalike_hides_nothing():
    """The table of lookalikes has letters without accents; a Greek alpha with one is spelt as the Latin letter."""
    assert letters_of("M\u03acra V\u03ccss") == "maravoss"


def test_lookalikes_are_no_ascii_letters_and_look_like_one():
    """The table maps one letter to one, and never a Latin letter of plain English."""
    assert all(not letter.isascii() and latin.isascii() and latin.isalpha() for letter, latin in LOOKS_LIKE.items())
