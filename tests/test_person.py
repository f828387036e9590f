"""The detector of persons: a real model of transformers, tiny, made and trained here."""

import gc
import json
import os
import random
import re
import shutil
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from policy_documents import document
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from apl_guard import Action, Policy, PolicyInvalid, decide
from apl_guard.detect import Detectors
from apl_guard.detect.cache import TextCache
from apl_guard.detect.person import PersonDetector, PersonMatch
from apl_guard.detect.token_reader import TokenReader, _joined
from apl_guard.detect.worker import Worker
from apl_guard.policy import Person
from apl_guard.policy.schema import Spec
from apl_guard.request import Channel, GenerationRequest
from apl_guard.request.context import Context

LABELS = ["O", "B-PER", "I-PER", "B-LOC"]
THINGS = [
    "cat",
    "dog",
    "car",
    "tree",
    "house",
    "horse",
    "boat",
    "lamp",
    "chair",
    "river",
    "garden",
    "street",
    "bridge",
    "castle",
]
SCENES = ["at night", "in the rain", "by the sea", "on a beach", "in a garden", "under a bridge", "in oil", "35 mm"]
TEMPLATES = ["a photo of {}", "{}", "a portrait of {} with a {}", "a painting of a {} beside {}", "{} rides a {}"]
WORDS = sorted({*THINGS, *" ".join(SCENES + TEMPLATES).replace("{}", "").split(), ",", ".", "'", "s"})


def new_tokenizer():
    """Words of the grammar; any other is unknown, and what it is, is said by where it stands."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=48, **special)


def new_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(WORDS) + 4,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=48,
            id2label=dict(enumerate(LABELS)),
            label2id={label: number for number, label in enumerate(LABELS)},
        )
        return BertForTokenClassification(config)


def sentence(choose):
    """A sentence of the grammar, and the name in it."""
    name = " ".join("".join(choose.choices("aeioubdkmnrst", k=choose.randint(4, 8))).title() for _ in range(2))
    template = choose.choice(TEMPLATES)
    person_first = template != TEMPLATES[3]
    filled = template.format(*([name, choose.choice(THINGS)] if person_first else [choose.choice(THINGS), name]))
    if choose.random() < 0.3:
        filled, name = filled.replace(name, choose.choice(THINGS)), None
    return f"{filled} {choose.choice(SCENES)}", name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that was trained for some seconds on the grammar, in a folder."""
    choose, tokenizer, model = random.Random(0), new_tokenizer(), new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        made = [sentence(choose) for _ in range(32)]
        encoded = tokenizer([text for text, _ in made], padding=True, return_tensors="pt", return_offsets_mapping=True)
        labels = torch.zeros(encoded["input_ids"].shape, dtype=torch.long)
        for row, ((text, name), offsets) in enumerate(zip(made, encoded.pop("offset_mapping").tolist(), strict=True)):
            for column, (start, end) in enumerate(offsets):
                if end == start:
                    labels[row, column] = -100
                elif name and text.index(name) <= start < text.index(name) + len(name):
                    labels[row, column] = 1 if start == text.index(name) else 2
        model(**encoded, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("ner")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The same with random weights: it says something about every token, whatever that is."""
    folder = tmp_path_factory.mktemp("random")
    new_model().save_pretrained(folder)
    new_tokenizer().save_pretrained(folder)
    return folder


def detector(folder, least=0.5, **settings):
    return PersonDetector(Person(model=str(folder), milliseconds=60_000, **settings), least)


def policy(folder, action="anonymize", names=(), when=None, on_error="block", **person):
    named = {"channels": ["prompt"], "entities": ["person"], **(when or {})}
    return Policy.model_validate(
        document(
            {"id": "allow", "when": {"channels": ["prompt", "negative_prompt"]}, "then": {"action": "allow"}},
            {"id": "person", "when": named, "then": {"action": action}},
            on_error=on_error,
            names=names,
            person={"model": str(folder), "milliseconds": 60_000, **person},
        )
    )


def ask(found, detectors, *prompts, tenant=None):
    prompt = Channel.PROMPT
    request = GenerationRequest("test:Pipe", {prompt: prompts}, frozenset({prompt}))
    return decide(found, request, Context(tenant), detectors.look(request, tenant))


def test_a_trained_model_finds_names_that_it_never_saw(trained):
    """Of 200 new sentences of its grammar, in the right place and nowhere else in at least 95 of 100."""
    choose = random.Random(1)
    made = [sentence(choose) for _ in range(200)]
    found = detector(trained).find([text for text, _ in made], None)

    right = sum(
        [text[m.start : m.end] for m in matches] == [name] * bool(name)
        for (text, name), matches in zip(made, found, strict=True)
    )
    assert right >= 190


def test_a_batch_finds_what_single_texts_find(untrained):
    """And so do texts that come again, which are remembered."""
    texts = ["a cat", "a photo of Mara Voss at night", "", "the sea", "a photo of Mara Voss at night"]
    at_once = detector(untrained, least=0.2)
    one_by_one = detector(untrained, least=0.2, cache=0)

    expected = [one_by_one.find([text], None)[0] for text in texts]
    for _ in range(2):
        made = at_once.find(texts, None)
        assert [[(m.start, m.end) for m in found] for found in made] == [
            [(m.start, m.end) for m in f] for f in expected
        ]
        assert [m.score for f in made for m in f] == pytest.approx([m.score for f in expected for m in f], abs=1e-5)


def test_a_name_far_behind_in_a_long_text_is_found(trained):
    """A model of 48 positions looks at a long text window by window."""
    text = "a cat at night , " * 30 + "a photo of Rinka Tosem by the sea"

    (found,) = detector(trained).find([text], None)

    assert "Rinka Tosem" in [text[match.start : match.end] for match in found]


def test_a_rule_asks_for_persons(trained):
    """Each action; and how sure the detector must be."""
    prompt = "a photo of Rinka Tosem by the sea"
    for action in ("anonymize", "rewrite", "block"):
        found = policy(trained, action, neutral="somebody")
        detectors = Detectors(found)
        assert ask(found, detectors, "a photo of a cat by the sea").action == Action.ALLOW
        decision = ask(found, detectors, prompt)
        assert decision.action == action
        assert [(f.source, f.start, f.end) for f in decision.findings] == [("entity.person", 11, 22)]
        assert action != "rewrite" or decision.texts[Channel.PROMPT] == ("a photo of somebody by the sea",)
    score = decision.findings[0].score
    for least, applies in ((score - 1e-6, True), (min(score + 1e-6, 1), False)):
        found = policy(trained, "block", when={"min_score": least})
        assert (ask(found, Detectors(found), prompt).action == Action.BLOCK) == (applies or score == 1)


def test_who_consents_counts_as_not_seen(trained):
    """However the name is written; a name beside it still counts, and a protected list is stricter."""
    consenting = {"id": "models", "role": "consenting", "people": [{"name": "Rinka Tosem"}]}
    found = policy(trained, "block", names=[consenting])
    detectors = Detectors(found)

    assert ask(found, detectors, "a photo of RINKA  tosem by the sea").action == Action.ALLOW
    assert ask(found, detectors, "a photo of Bodek Minat by the sea").action == Action.BLOCK
    assert ask(found, detectors, "a photo of Rinka Tosem Bodek by the sea").action == Action.BLOCK
    with pytest.raises(ValueError, match=r"there is none; add 'spec\.person'"):
        Spec.model_validate({"names": [consenting], "rules": found.model_dump()["spec"]["rules"][:1]})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Ana Lima, Bo Ray", ["Ana Lima", "Bo Ray"]),
        ("Ana Lima & Bo Ray / Kai", ["Ana Lima", "Bo Ray", "Kai"]),
        ("Jean-Luc O'Neill Jr.", ["Jean-Luc O'Neill Jr"]),
        ("J. K. Ray", ["J. K. Ray"]),
    ],
)
def test_people_who_are_listed_are_several(text, names):
    """Else two people who consent, with a comma between, would be one person who does not."""
    words = [PersonMatch(word.start(), word.end(), 0.9) for word in re.finditer(r"\w+", text)]

    assert [text[match.start : match.end] for match in _joined(text, words)] == names


class TestFaults:
    """A detector that cannot look is no detector that saw nothing."""

    @pytest.fixture(params=["raises", "hangs", "nan", "short of memory"])
    def faulty(self, request, trained, monkeypatch):
        """A policy whose detector fails in one way, and its detectors."""
        found = policy(trained, milliseconds=200)
        detectors = Detectors(found)
        model = detectors._person._reader.model
        released = threading.Event()
        forward = model.forward

        def fail(**inputs):
            if request.param == "raises":
                raise RuntimeError("broken")
            if request.param == "hangs":
                released.wait(20)
            if request.param == "short of memory":
                raise MemoryError
            output = forward(**inputs)
            output.logits.fill_(float("nan"))
            return output

        monkeypatch.setattr(model, "forward", fail)
        yield request.param, found, detectors
        released.set()

    def test_every_fault_means_no_image_and_is_named(self, faulty):
        """In the decision, from where it goes into the record."""
        kind, found, detectors = faulty
        began = time.monotonic()

        decision = ask(found, detectors, "a photo of a cat by the sea")

        errors = {"raises": "RuntimeError", "hangs": "TimeoutError", "nan": "ArithmeticError"}
        assert decision.action == decision.effective == Action.BLOCK
        assert decision.failed == {"entity.person": errors.get(kind, "MemoryError")}
        assert time.monotonic() - began < 15

    def test_on_error_says_what_follows(self, faulty, trained):
        """The prefix on the prompt, or, in so many words, nothing."""
        _, _, detectors = faulty
        for on_error, action, unsafe in (
            ("fallback", Action.ANONYMIZE, ()),
            ("unsafe_passthrough", Action.ALLOW, ("on_error: unsafe_passthrough",)),
        ):
            other = policy(trained, on_error=on_error, milliseconds=200)
            decision = ask(other, detectors, "a photo of a cat by the sea")
            assert (decision.action, decision.unsafe) == (action, unsafe)
            assert decision.prefixed == (action == Action.ANONYMIZE)

    def test_a_fault_is_not_remembered(self, trained, monkeypatch):
        """The next call asks again."""
        found = policy(trained)
        detectors = Detectors(found)
        with monkeypatch.context() as patch:
            patch.setattr(detectors._person._reader.model, "forward", lambda **_: 1 / 0)
            assert ask(found, detectors, "a cat").action == Action.BLOCK
        assert ask(found, detectors, "a cat").action == Action.ALLOW

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on this system")
    def test_a_child_of_a_fork_has_its_own_thread(self):
        """That of the parent is not there, and every look would end as too late."""
        worker = Worker("test")
        assert worker.run(lambda: 1, 5) == 1
        child = os.fork()
        if child == 0:
            try:
                os._exit(worker.run(lambda: 7, 5))
            except BaseException:
                os._exit(1)

        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

    def test_work_that_hangs_does_not_keep_later_work_waiting_for_ever(self):
        """Each waits as long as it may; what was given up does not run later."""
        worker, released, ran = Worker("test"), threading.Event(), []
        with pytest.raises(TimeoutError):
            worker.run(lambda: released.wait(20), 0.05)
        with pytest.raises(TimeoutError):
            worker.run(lambda: ran.append("given up"), 0.05)
        released.set()

        assert worker.run(lambda: "done", 20) == "done"
        assert ran == []

    def test_behind_work_that_hangs_nothing_piles_up(self):
        """What was given up is let go of at once, such as pictures, and no more than so many calls wait."""
        worker, released = Worker("test"), threading.Event()
        with pytest.raises(TimeoutError):
            worker.run(lambda: released.wait(60), 0.05)

        def give_up():
            picture = np.zeros(1)
            with pytest.raises(TimeoutError):
                worker.run(picture.sum, 0.0001)
            return weakref.ref(picture)

        kept = [give_up() for _ in range(1100)]
        gc.collect()  # tracebacks of errors hold frames
        assert [each for each in kept if each() is not None] == []
        assert worker._jobs.qsize() <= 1000
        released.set()
        assert worker.run(lambda: "done", 20) == "done"


class TestCache:
    """What is remembered about texts."""

    def test_one_tenant_learns_nothing_about_the_texts_of_another(self, trained, monkeypatch):
        """The model runs again for another tenant, and not for the same."""
        found = policy(trained)
        detectors = Detectors(found)
        model, runs = detectors._person._reader.model, []
        forward = model.forward
        monkeypatch.setattr(
            model, "forward", lambda **inputs: runs.append(len(inputs["input_ids"])) or forward(**inputs)
        )

        for tenant in ("a", "a", "b", None, "b", None):
            ask(found, detectors, "a cat", "a dog", tenant=tenant)
        ask(found, detectors, "a dog", "a boat", tenant="a")

        assert runs == [2, 2, 2, 1]

    def test_it_stays_small_and_holds_no_text(self):
        """Of texts and of tenants; what was asked for last stays."""
        cache = TextCache(texts=2, tenants=3)
        for tenant in "abcd":
            for text in ("one", "two", "three"):
                cache.put(tenant, text, f"{tenant} {text}")
                cache.get(tenant, "one")

        assert cache.get("a", "three") is None
        assert [cache.get("d", text) for text in ("one", "two", "three")] == ["d one", None, "d three"]
        assert sum(len(known) for known in cache._found.values()) == 6
        assert "three" not in repr({key for known in cache._found.values() for key in known})


@pytest.mark.parametrize("damage", ["empty", "no folder", "labels", "sha256", "pickle", "weights", "no head"])
def test_what_is_no_model_is_no_model(damage, untrained, tmp_path):
    """Named before any prompt comes; weights are never read from a pickle."""
    folder, settings = tmp_path / "model", {}
    if damage != "no folder":
        folder.mkdir()
    if damage not in ("empty", "no folder"):
        for file in untrained.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    if damage == "labels":
        settings["labels"] = ["HUMAN"]
    if damage == "sha256":
        settings["sha256"] = "0" * 64
    if damage == "pickle":
        torch.save(new_model().state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    if damage == "no head":  # the model below it, which transformers would complete with random numbers
        weights = load_file(folder / "model.safetensors")
        save_file(
            {name: part for name, part in weights.items() if "classifier" not in name}, folder / "model.safetensors"
        )
    if damage == "weights":
        (folder / "model.safetensors").write_bytes(b"x" * 100)

    with pytest.raises(PolicyInvalid, match="model"):
        detector(folder, **settings)


def test_the_weights_are_those_whose_digest_is_on_record(untrained, tmp_path):
    """Neither those of a file that the configuration names beside, nor what is written over them later."""
    folder = shutil.copytree(untrained, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    blind = {name: torch.zeros_like(part) for name, part in weights.items()}
    save_file(blind, folder / "other.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))

    reader = TokenReader(Person(model=str(folder)), 0.5)
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.write((folder / "other.safetensors").read_bytes())

    loaded = reader.model.state_dict()
    assert all(torch.equal(loaded[name], part) for name, part in load_file(untrained / "model.safetensors").items())
