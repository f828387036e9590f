"""Lists of names: what is read, what is found in a text however it is written, and what is not."""

import os
import random
import re
import string
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from apl_guard import PolicyInvalid
from apl_guard.detect.names import NamesIndex
from apl_guard.policy import Names
from apl_guard.policy.names_file import read_names
from apl_guard.request.canonical import canonical
from apl_guard.request.confusables import LOOKS_LIKE


def index(*names, **others):
    return NamesIndex([Names(id="stars", people=[{"name": name} for name in names], **others)])


def found(names, text):
    """The parts of the canonical text in which names are."""
    text = canonical(text)
    return [text[match.start : match.end] for match in index(*names).find(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of Mara Voss, smiling", ["Mara Voss"]),
        ("MARA VOSS", ["MARA VOSS"]),
        ("mara\n\tvoss's dog", ["mara voss"]),
        ("Mara-Voss and mara_voss", ["Mara-Voss", "mara_voss"]),
        ("MaraVoss", ["MaraVoss"]),
        ("M a r a V o s s", ["M a r a V o s s"]),
        ("M.a.r.a. V.o.s.s", ["M.a.r.a. V.o.s.s"]),
        ("Ma\u0301ra V\u00f6ss", ["M\u00e1ra V\u00f6ss"]),
        ("M\u0336a\u0336r\u0336a\u0336 Voss", ["M\u0336a\u0336r\u0336a\u0336 Voss"]),
        ("\u041c\u0430r\u0430 Voss", ["Mara Voss"]),
        ("mara voss2", ["mara voss"]),
        ("2mara voss", ["mara voss"]),
        ("(mara voss:1.3)", ["mara voss"]),
        ("Tamara Voss", []),
        ("Mara Vossler", []),
        ("Mar avoss", []),
        ("Ma ra Voss", []),
        ("Mara", []),
        ("", []),
    ],
)
def test_a_name_is_found_as_whole_words_however_it_is_written(text, expected):
    """And not as a part of other words."""
    assert found(["Mara Voss"], text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x\u0336Mara Voss", ["Mara Voss"]),
        ("Mara Voss\u20ddx", ["Mara Voss"]),
        ("\u0436Mara Voss", ["Mara Voss"]),
        ("Mara Voss\u044f", ["Mara Voss"]),
        ("\u03bb\u03b8Mara Voss", ["Mara Voss"]),
        ("x\u0941Mara Voss", []),  # in other words xMara
        ("Mara\u0941 Vo" + 99 * "\u0941" + "ss", ["Mara Voss"]),
        ("\u0941Mara \u0941 Ma\u0345ra \u0345Voss\u0345", ["Mara Voss"]),
        ("M\u0336a\u0336ra\u0336 Voss", ["M\u0336a\u0336ra\u0336 Voss"]),
        ("\u0130Mara Voss", ["Mara Voss"]),  # the small letter is an i with a dot behind it
        ("\u0915\u093cMara Voss", ["Mara Voss"]),
        ("\u0436\u0301Mara Voss", ["Mara Voss"]),
        ("it'smara voss", ["mara voss"]),
        ("we\u2019LLMara Voss", ["Mara Voss"]),
        ("'dmara voss's", ["mara voss"]),
        ("smara voss", []),
        ("it's'xmara voss", []),
        ("i' smara voss", []),
        ("jo-smara voss", []),
        ("x'ssmara voss", []),
        ("Ta\u0336x Mara\u0336vossler", []),
        ("\u0416\u0430\u043d\u043d\u0430 Voss", []),
    ],
)
def test_a_text_encoder_reads_words_apart_that_are_written_in_one(text, expected):
    """Where a mark has no place among Latin letters, where another script begins, and behind an 's."""
    assert found(["Mara Voss"], text) == expected


CLIP = Tokenizer.from_file(str(Path(__file__).parents[1] / "trainer/minifaces/weights/base/tokenizer/tokenizer.json"))
GLUE = [
    *"xs'e\u2019d\u0130i\u0301\u0336\u093c\u0915\u0941\u0436\u03bb\u00e9\u017f\u0644\u064b4-. \u200b",
    "ll",
    "ve",
    "'s",
]


@given(st.lists(st.sampled_from(GLUE), max_size=4), st.lists(st.sampled_from(GLUE), max_size=4))
def test_what_a_text_encoder_reads_as_a_name_is_found(before, behind):
    """Whatever is written in one with it: the words of CLIP's tokenizer decide."""
    text = canonical(f"{''.join(before)}Mara Voss{''.join(behind)}")
    words = [word for word, _ in CLIP.pre_tokenizer.pre_tokenize_str(CLIP.normalizer.normalize_str(text))]

    if ("mara", "voss") in pairwise(words):
        assert found(["Mara Voss"], text), text


@pytest.mark.parametrize(
    ("alias", "text"), [("S. Lake", "it\u2019s lake"), ("M. Voss", "I'm Voss"), ("D. Rose", "I'D Rose")]
)
def test_the_end_of_a_word_is_no_initial(alias, text):
    """Of aliases with initials, or each 's before a word that is also a surname would be somebody."""
    assert found([alias], text) == []
    assert found([alias], f"'{alias}'") == [alias]
    assert found([alias], text.partition(" ")[0] + f" {alias}") == [alias]


def test_somebody_who_may_be_drawn_is_not_found_within_a_word():
    """To hold somebody else for them would open a way round."""
    index = NamesIndex([Names(id="models", role="consenting", people=[{"name": "Mara Voss"}])])
    texts = ("Mara Voss", "\u0436Mara Voss", "x\u0336Mara Voss", "it'sMara Voss")

    assert [len(index.find(text)) for text in texts] == [1, 0, 0, 0]


def test_a_short_name_in_one_word_is_another_word():
    """Li Ke is not like, nor is a man a Mana; both are found where they are written."""
    assert found(["Li Ke"], "they like a lake") == []
    assert found(["Li Ke"], "li ke and Li-Ke") == ["li ke", "Li-Ke"]
    assert found(["Mana"], "a man a plan") == []


def test_scripts_without_spaces():
    """A name is found between other signs; in scripts with spaces it is not."""
    assert found(["\u738b\u5c0f\u660e"], "\u4e00\u5f20\u738b\u5c0f\u660e\u7684\u7167\u7247") == ["\u738b\u5c0f\u660e"]
    assert found(["\ud64d\uae38\ub3d9"], "\ud64d\uae38\ub3d9\uc758 \uc0ac\uc9c4") == ["\ud64d\uae38\ub3d9"]
    assert found(["\u0418\u0432\u0430\u043d"], "\u0418\u0432\u0430\u043d\u043e\u0432") == []
    assert found(["\u0418\u0432\u0430\u043d"], "\u0438\u0432\u0430\u043d!") == ["\u0438\u0432\u0430\u043d"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("Lech Wa\u0142\u0119sa", "Lech Walesa waves", "Lech Walesa"),
        ("Lech Walesa", "Lech Wa\u0142\u0119sa waves", "Lech Wa\u0142\u0119sa"),
        ("Mara Voss", "Mara V\u00f8ss", "Mara V\u00f8ss"),
        ("Nguy\u1ec5n \u0110\u1ee9c", "Nguyen Duc", "Nguyen Duc"),
        ("\u00c6gir Gu\u00f0mund", "aegir gudmund", "aegir gudmund"),
        ("\u00deora B\u0153uf", "Thora Boeuf", "Thora Boeuf"),
    ],
)
def test_strokes_are_no_more_than_accents(name, text, expected):
    """Letters that Unicode does not take apart are found as they are typed where a keyboard lacks them."""
    assert found([name], text) == [expected]


@pytest.mark.parametrize("apostrophe", ["'", "\u2019", "\u02bc", "\u02bb", "\u02c8", "\ua78c"])
def test_an_apostrophe_ends_a_word_whichever_it_is(apostrophe):
    """Unicode counts some of them among the letters."""
    assert found(["Mara Voss"], f"Mara Voss{apostrophe}s dog") == ["Mara Voss"]
    assert found(["Sean O'Neill"], f"Sean O{apostrophe}Neill") == [f"Sean O{apostrophe}Neill"]
    assert found([f"Sean O{apostrophe}Neill"], "Sean ONeill") == ["Sean ONeill"]


def test_a_stretched_name_is_that_name():
    """Tatweel draws Arabic words out and says nothing."""
    name, stretched = (
        "\u0645\u062d\u0645\u062f \u0635\u0644\u0627\u062d",
        "\u0645\u062d\u0640\u0645\u062f \u0635\u0640\u0644\u0627\u062d",
    )
    assert found([name], f"\u0635\u0648\u0631\u0629 {stretched}") == [stretched]


@pytest.mark.parametrize(
    "name", ["\u0645\u062d\u0645\u062f \u0635\u0644\u0627\u062d", "\u05e8\u05d5\u05df \u05db\u05d4\u05df"]
)
def test_a_name_begins_and_ends_where_the_direction_of_writing_changes(name):
    """Of Arabic and of Hebrew, written in one with words of Cyrillic."""
    assert found([name], f"\u0444\u043e\u0442\u043e{name}\u0436") == [name]


def test_scripts_without_spaces_are_spaced_at_will():
    """Family and given name with or without a space; Korean keeps its words apart, and its syllables whole."""
    for name in ("\u5c71\u7530\u592a\u90ce", "\u5c71\u7530 \u592a\u90ce"):
        assert found([name], "\u5c71\u7530\u3000\u592a\u90ce\u306e\u5199\u771f") == ["\u5c71\u7530 \u592a\u90ce"]
        assert found([name], "\u5c71\u7530\u592a\u90ce\u306e\u5199\u771f") == ["\u5c71\u7530\u592a\u90ce"]
    assert found(["\u738b\u5c0f\u660e"], "\u4e00\u5f20\u738b \u5c0f\u660e\u7684") == ["\u738b \u5c0f\u660e"]
    assert found(["\ud64d\uae38\ub3d9"], "\ud64d \uae38\ub3d9\uc758") == ["\ud64d \uae38\ub3d9"]
    assert found(["\uc774\uc218"], "\ub098\uc774 \uc218\uc9c0") == []
    assert found(["\uc774\uc218"], "\uc774\uc21c\uc2e0 \uc7a5\uad70") == []
    assert found(["\u30de\u30ea\u30fc"], "\u30de\u30ea\u30fcsmiles") == ["\u30de\u30ea\u30fc"]


LOOKALIKES = {}
for letter, latin in LOOKS_LIKE.items():
    LOOKALIKES.setdefault(latin, []).append(letter)
INVISIBLE = [
    "\u200b",
    "\u200d",
    "\u2060",
    "\ufeff",
    "\u00ad",
    "\u202e",
    "\u2066",
    "\ufe0f",
    "\U000e0041",
    "\x00",
    "\u0301",
]


@given(st.randoms(use_true_random=False), st.sampled_from(["Mara Voss", "Jo\u00e3o Nu\u00f1ez", "Oksana O'Neill"]))
def test_a_disguised_name_is_found(choose, name):
    """Letters swapped for lookalikes, full-width ones and other case, invisible signs between, spaces multiplied."""

    def disguise(letter):
        options = [
            letter,
            letter.upper(),
            letter.lower(),
            *LOOKALIKES.get(letter, []),
            *LOOKALIKES.get(letter.upper(), []),
        ]
        if letter.isascii() and letter.isalpha():
            options.append(chr(ord(letter) + 0xFEE0))
        made = choose.choice(options) if letter != " " else choose.choice([" ", "  ", "\u00a0", "\n", "-", ".", "_"])
        return made + "".join(choose.choices(INVISIBLE, k=choose.choice([0, 0, 1, 2])))

    text = canonical("a photo of " + "".join(map(disguise, name)) + " smiling")

    assert len(index(name).find(text)) == 1


names_of_letters = st.lists(
    st.from_regex(r"[a-d]{2,4}( [a-d]{2,4})?", fullmatch=True), min_size=1, max_size=6, unique=True
)


@given(names_of_letters, st.from_regex(r"([a-d]{1,4} ){0,8}[a-d]{1,4}", fullmatch=True))
def test_finding_agrees_with_a_search_for_each_name(names, text):
    """For names and texts of plain letters, written as in the list; a name may also be found joined."""
    expected = {(m.start(1), m.end(1)) for name in names for m in re.finditer(rf"(?=\b({re.escape(name)})\b)", text)}
    made = {(match.start, match.end) for match in index(*names).find(text)}

    assert expected <= made
    for start, end in made - expected:
        part = text[start:end]
        joined = part in {name.replace(" ", "") for name in names if len(name) > 8}
        letters_alone = any(len(word) == 1 for word in part.split())
        assert joined or letters_alone


def test_many_names_are_found_as_few_are():
    """Of 20,000 names, exactly those that a prompt holds."""
    choose = random.Random(0)
    names = {"".join(choose.choices(string.ascii_lowercase, k=9)) + " voss" for _ in range(20_000)}
    some = choose.sample(sorted(names), 50)
    many = index(*names)

    for name in some:
        text = f"a photo of {name} in the rain"
        assert [text[m.start : m.end] for m in many.find(text)] == [name]


def test_two_people_with_one_spelling_are_both_found():
    """On each list, with what stands for the first there."""
    lists = [
        Names(id="a", people=[{"name": "Mara Voss", "neutral": "one"}]),
        Names(
            id="b", people=[{"name": "M\u00e1ra Voss", "neutral": "two"}, {"name": "Other", "aliases": ["mara-voss"]}]
        ),
    ]

    matches = NamesIndex(lists).find("mara voss")

    assert [(m.names.id, m.neutral) for m in matches] == [("a", "one"), ("b", "two")]


def test_a_name_that_is_listed_often_is_one_finding():
    """Thousands of one name would make a prompt that repeats it take minutes."""
    index = NamesIndex([Names(id="stars", people=[{"name": "Mara Voss", "aliases": ["mara-voss"]}] * 1000)])

    assert len(index.find("Mara Voss, MARA VOSS")) == 2


@pytest.mark.parametrize("name", ["", "x", "!!!", "\u200b", "y" * 65])
def test_a_name_has_letters(name):
    """Fewer than two would be found everywhere."""
    with pytest.raises(PolicyInvalid, match="letters"):
        index("Mara Voss", name)


def test_a_name_that_is_none_is_told_by_its_place():
    """In a list of thousands nobody would find it."""
    people = [{"name": "Mara Voss"}, {"name": "Kai Lund", "aliases": ["Kai", "K."]}]
    with pytest.raises(PolicyInvalid, match=r"alias of 1 letters in entry 2 of the list; expected 2 to 64"):
        NamesIndex([Names(id="stars", people=people)])


def read(tmp_path, content, **others):
    (tmp_path / "list.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_names(Names(id="stars", file="list.csv", **others), tmp_path)


def test_a_file_of_names(tmp_path):
    """Names, aliases and neutral descriptions; columns in any order; the digest is that of the bytes."""
    names = read(tmp_path, 'neutral,name,aliases\r\n"a woman, tall",Mara Voss,M. Voss;Mara V.\r\n,"Kai, the",\r\n')

    assert names.listed == (
        ("Mara Voss", ("M. Voss", "Mara V."), "a woman, tall"),
        ("Kai, the", (), "a person"),
    )
    assert read(tmp_path, "name\nMara Voss\n", neutral="somebody").listed == (("Mara Voss", (), "somebody"),)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "line 1: expected the columns"),
        (b"Mara Voss\n", "line 1: expected the columns"),
        (b"name,name\na,b\n", "line 1"),
        (b"name,age\na,b\n", "line 1"),
        (b"Name\na\n", "line 1: expected the columns name, aliases, neutral, written so"),
        (b"name;aliases\na;b\n", "line 1: found semicolons; expected .* separated by commas"),
        (b"name\taliases\na\tb\n", "line 1: found tabs; expected .* separated by commas"),
        (b"name\n", "no names"),
        (b"name\na,b\n", "line 2: expected 1 fields"),
        (b"name\n\xff\n", "not UTF-8; expected a CSV file in UTF-8"),
        (b'name\n"a\n', "not CSV"),
        (b"name\n" + b"a" * 5000, "at most 4000"),
        (b"name\n" + b"a" * 200_000, "CSV"),
    ],
)
def test_a_file_that_is_no_list(tmp_path, content, expected):
    """The line is named."""
    with pytest.raises(PolicyInvalid, match=expected):
        read(tmp_path, content)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(tmp_path, content):
    """A list or a typed error."""
    try:
        assert read(tmp_path, b"name\n" + content).listed
    except PolicyInvalid as error:
        assert "list.csv" in str(error)  # noqa: PT017


def test_a_file_other_than_the_one_the_policy_wants(tmp_path):
    """The digest in the policy decides."""
    digest = read(tmp_path, "name\nMara Voss\n").sha256

    assert read(tmp_path, "name\nMara Voss\n", sha256=digest).listed
    with pytest.raises(PolicyInvalid, match="the policy wants"):
        read(tmp_path, "name\nMara Vos\n", sha256=digest)


def test_a_file_stays_in_its_folder(tmp_path):
    """Neither a path nor a link leads out; a pipe and a folder are no lists."""
    (tmp_path / "secret.csv").write_text("name\nx y\n")
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "link.csv").symlink_to(tmp_path / "secret.csv")
    os.mkfifo(folder / "pipe.csv")
    (folder / "folder.csv").mkdir()
    for file in ("../secret.csv", str(tmp_path / "secret.csv"), "link.csv", "pipe.csv", "folder.csv", "no.csv", "a\0b"):
        with pytest.raises(PolicyInvalid):
            read_names(Names(id="stars", file=file), folder)
