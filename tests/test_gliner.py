"""The detector of persons with a model of GLiNER: its true classes, with random weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from detectors import save_gliner
from policy_documents import policy

from apl_guard import Action, PolicyInvalid
from apl_guard.detect.person import PersonDetector
from apl_guard.policy import Person

WORDS = "a photo of Mara Voss and cat person by the sea"
TEXTS = ["a photo of Mara Voss, and a cat by the sea", "a cat", "", "¿ Mara-Voss's  cat?", "猫 и кот"]

pytestmark = pytest.mark.filterwarnings("error:.*truncated")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_gliner(tmp_path_factory.mktemp("gliner"), WORDS)


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def theirs(folder):
    """The same model, as the package itself reads it."""
    from gliner import GLiNER

    return GLiNER.from_pretrained(str(folder), local_files_only=True)


def detector(folder, least=0.4, **settings):
    return PersonDetector(Person(model=str(folder), milliseconds=60_000, cache=0, **settings), least)


@pytest.mark.parametrize("labels", [None, ["cat", "person"]])
@pytest.mark.parametrize("least", [0.4, 0.452])
def test_it_sees_what_the_package_sees(folder, theirs, labels, least):
    """In each text of a batch, at the same places with the same scores."""
    found = detector(folder, least, labels=labels).find(TEXTS, None)

    expected = [theirs.inference([text], labels or ["person"], threshold=least)[0] if text else [] for text in TEXTS]
    assert sum(map(len, found)) > 2
    assert [[(m.start, m.end) for m in each] for each in found] == [
        sorted((e["start"], e["end"]) for e in each) for each in expected
    ]
    for mine, their in zip(found, expected, strict=True):
        scores = {e["start"]: e["score"] for e in their}
        assert [m.score for m in mine] == pytest.approx([scores[m.start] for m in mine], abs=1e-5)


@pytest.mark.parametrize("text", ["Mara Voss and " * 60, "x" * 500 + " Mara Voss", ("y" * 30 + " ") * 20, "猫" * 300])
def test_nothing_of_a_long_text_is_left_out(folder, text):
    """The package would cut it and say nothing: whoever is named behind many words, or behind a long one, is seen."""
    found = detector(folder, least=1e-6)
    runs = []
    found._reader.model.register_forward_pre_hook(
        lambda _, args, named: runs.append(named["input_ids"].shape), with_kwargs=True
    )
    (seen,) = found.find([text], None)

    covered = {place for match in seen for place in range(match.start, match.end)}
    assert covered >= {place for place, letter in enumerate(text) if letter != " "}
    assert max(rows for rows, _ in runs) <= 16
    assert max(tokens for _, tokens in runs) <= 48


def test_looking_leaves_the_random_numbers_of_the_process_alone(folder):
    """Pictures of a global seed do not depend on whether a text was looked at."""
    found, before = detector(folder), torch.get_rng_state()
    found.find(TEXTS, None)

    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_that_are_none_are_a_fault(folder):
    """Not a text without persons."""
    found = detector(folder)
    with torch.no_grad():
        next(found._reader.model.parameters()).fill_(float("nan"))

    with pytest.raises(ArithmeticError):
        found.find(["a cat"], None)


def test_a_policy_uses_it_like_any_other_detector(copy):
    """It names its folder; the digest of the weights is that of the file."""
    from apl_guard.in_force import PolicyInForce
    from apl_guard.in_force.in_force import as_request
    from apl_guard.policy.cases import Case
    from apl_guard.request.context import Context

    rules = [
        {"id": "all", "when": {"channels": ["prompt"]}, "then": {"action": "allow"}},
        {
            "id": "p",
            "when": {"channels": ["prompt"], "entities": ["person"], "min_score": 0.4},
            "then": {"action": "rewrite"},
        },
    ]
    person = {"model": str(copy), "labels": ["person"], "neutral": "x", "milliseconds": 60_000}
    found = policy(*rules, person=person)
    in_force = PolicyInForce(found)
    asked = as_request(Case.model_validate({"name": "t", "given": {"prompt": "cat"}, "expect": {"action": "allow"}}))
    decision = in_force.decide(asked, Context())

    assert (decision.action, dict(decision.texts)) == (Action.REWRITE, {"prompt": ("x",)})
    assert list(in_force.models) == ["entity.person"]


def changed(folder, file="gliner_config.json", **fields):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


DAMAGE = {
    "code of an encoder": (lambda f: changed(f, encoder_config={"model_type": "bert", "auto_map": {}}), "names code"),
    "code of a tokenizer": (
        lambda f: changed(f, "tokenizer_config.json", auto_map={"AutoTokenizer": "t.T"}),
        "names code",
    ),
    "encoder elsewhere": (lambda f: changed(f, encoder_config=None), "not in the folder"),
    "tokenizer elsewhere": (lambda f: (f / "tokenizer_config.json").unlink(), "not in the folder"),
    "labels by a model": (lambda f: changed(f, labels_encoder="x/y"), "not supported: 'labels_encoder'"),
    "token by token": (lambda f: changed(f, span_mode="token_level"), "not supported: 'span_mode'"),
    "another splitter": (lambda f: changed(f, words_splitter_type="spacy"), "not supported: 'words_splitter_type'"),
    "no JSON": (lambda f: (f / "gliner_config.json").write_text("{"), "no model of GLiNER"),
    "no object": (lambda f: (f / "gliner_config.json").write_text("[]"), "no model of GLiNER"),
    "weights of another size": (lambda f: changed(f, hidden_size=64), "no model of GLiNER"),
    "weights too few": (lambda f: changed(f, num_rnn_layers=2), "no model of GLiNER"),
    "a pickle": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "no model of GLiNER"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_model_is_no_model(copy, damage, monkeypatch):
    """Named before any prompt comes; nothing is run, fetched, or drawn at random in its place."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    change, message = DAMAGE[damage]
    change(copy)

    with pytest.raises(PolicyInvalid, match=message):
        detector(copy)


def test_other_weights_or_too_many_labels_are_refused(folder):
    """By digest, and because no room for text would be left."""
    with pytest.raises(PolicyInvalid, match="the policy wants"):
        detector(folder, sha256="0" * 64)
    with pytest.raises(PolicyInvalid, match="for text"):
        detector(folder, labels=[f"l{n}" for n in range(12)])
