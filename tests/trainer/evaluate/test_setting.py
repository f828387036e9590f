"""The drawing of an evaluation: nothing is drawn twice, and nothing is taken for what it is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import CLIPTokenizerFast

from apl_guard.errors import InvalidInput, StorageFailed
from apl_guard.policy import Policy
from apl_guard.registry import PrefixRegistry
from apl_guard.testing import random_prefix, tiny_pipe
from apl_guard.trainer import minifaces
from apl_guard.trainer.evaluate.asking import ask_for_people
from apl_guard.trainer.evaluate.result import Asked
from apl_guard.trainer.evaluate.setting import Setting
from apl_guard.trainer.minifaces.person_reader import new_reader, save_person_reader

TEXTS = ["a photo of Ada", "a red car", "a photo of Ada"]


class Counting:
    """A call that counts what it draws."""

    def __init__(self, call: Any) -> None:
        self.call, self.drawn = call, 0

    def __call__(self, texts: list[str], **options: Any) -> Any:
        self.drawn += len(texts)
        return self.call(texts, **options)


@pytest.fixture(name="own")
def _own() -> Any:
    """A pipe that a test may change."""
    pipe = tiny_pipe()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(name="setting")
def _setting(own: Any, tmp_path: Path) -> Setting:
    return Setting.of(own, random_prefix(own, n=3), None, steps=1, folder=tmp_path / "pictures", progress=False)


def draws(setting: Setting, draw: Callable[[], Any]) -> int:
    """How many pictures are newly kept while something is drawn."""
    assert setting.folder is not None
    before = len(list(setting.folder.rglob("*.png")))
    draw()
    return len(list(setting.folder.rglob("*.png"))) - before


def test_each_bar_says_which_arm_it_is(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    """Neutral prompts are drawn by the plain model, and their bar does not call them plain."""
    asked = [Asked("a photo of Ada", "a photo of a woman", "Ada", {}, {}, "0")]
    replace(setting, progress=True).draw_people("seen", asked, "seen")
    shown = capsys.readouterr().err
    assert [f"seen {arm}:" in shown for arm in ("plain", "neutral", "guarded")] == [True, True, True]


def test_a_picture_is_drawn_once(setting: Setting, own: Any) -> None:
    """What was drawn is read again to the same bits, also by a setting that asks for more; the rest is drawn."""
    call = Counting(own)
    first = setting.draw(call, TEXTS, "s", decides="counted")
    again = setting.draw(call, TEXTS, "s", decides="counted")
    more = setting.draw(call, [*TEXTS, "a boat"], "s", decides="counted")

    assert call.drawn == 4
    assert np.array_equal(first, again)
    assert np.array_equal(first, more[:3])
    assert not np.array_equal(first[0], first[2]), "one text at two places has two seeds"


def test_labels_and_not_places_decide_the_seed(setting: Setting, own: Any) -> None:
    """Pictures with labels are found again in another order and among others."""
    one = setting.draw(own, ["a boat", "a car"], "s", labels=["x", "y"])
    other = setting.draw(own, ["a car", "a tree", "a boat"], "s", labels=["y", "z", "x"])

    assert np.array_equal(one[0], other[2])
    assert np.array_equal(one[1], other[0])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda s: replace(s, seed=1), id="seed"),
        pytest.param(lambda s: replace(s, steps=2), id="steps"),
        pytest.param(lambda s: replace(s, guidance=2.0), id="guidance"),
        pytest.param(lambda s: replace(s, precision=torch.bfloat16), id="number format"),
        pytest.param(lambda s: s.on(s.pipe, random_prefix(s.pipe, n=3, seed=9)), id="prefix"),
        pytest.param(lambda s: s.on(tiny_pipe(seed=9), random_prefix(tiny_pipe(seed=9), n=3)), id="model"),
        pytest.param(lambda s: replace(s, guard=guard_with_another_policy(s)), id="policy"),
    ],
)
def test_whatever_decides_a_picture_keeps_it_apart(setting: Setting, change: Callable[[Setting], Setting]) -> None:
    """Another seed, model, prefix, policy or way of drawing never gets the pictures of this one."""
    assert draws(setting, lambda: setting.draw(setting.guard, TEXTS, "s")) == 3
    changed = change(setting)
    assert draws(setting, lambda: changed.draw(changed.guard, TEXTS, "s")) == 3
    assert draws(setting, lambda: setting.draw(setting.guard, TEXTS, "s")) == 0


def guard_with_another_policy(setting: Setting) -> Any:
    return setting.on(setting.pipe, guard=None).guard.__class__(
        setting.pipe, policy=Policy.load("shadow_anonymize_faces"), prefix=setting.prefix
    )


def test_what_happens_to_the_model_keeps_pictures_apart(setting: Setting, own: Any) -> None:
    """A changed weight, scheduler or LoRA, and the mere strength of a LoRA, are other pictures."""

    def drawn() -> int:
        return draws(setting, lambda: setting.draw(own, ["a boat"], "s"))

    assert (drawn(), drawn()) == (1, 0)
    with torch.no_grad():
        next(own.unet.parameters()).add_(0.01)
    assert (drawn(), drawn()) == (1, 0)
    own.scheduler = type(own.scheduler).from_config(own.scheduler.config, beta_end=0.01)
    assert (drawn(), drawn()) == (1, 0)
    own.unet.add_adapter(LoraConfig(r=1, target_modules=["to_k"], init_lora_weights=False), "person")
    assert (drawn(), drawn()) == (1, 0)
    own.unet.set_adapters("person", 0.5)
    assert (drawn(), drawn()) == (1, 0)
    own.unet.disable_adapters()
    assert (drawn(), drawn()) == (1, 0)


def test_so_does_what_happens_to_the_second_text_encoder(tmp_path: Path) -> None:
    """Of SDXL: another option of it is another picture, as one of the first is."""
    pipe = tiny_pipe(family="stable_diffusion_xl")
    pipe.set_progress_bar_config(disable=True)
    setting = Setting.of(pipe, random_prefix(pipe, n=3), None, steps=1, folder=tmp_path, progress=False)

    for text_encoder in (pipe.text_encoder, pipe.text_encoder_2):
        assert draws(setting, lambda: setting.draw(pipe, ["a boat"], "s")) == 1
        text_encoder.config.layer_norm_eps *= 2

    assert draws(setting, lambda: setting.draw(pipe, ["a boat"], "s")) == 1


def test_of_a_call_that_nobody_knows_nothing_is_kept(setting: Setting, own: Any) -> None:
    """Unless the caller says what decides its pictures."""
    call = Counting(own)

    assert draws(setting, lambda: setting.draw(call, TEXTS, "s")) == 0
    assert draws(setting, lambda: setting.draw(call, TEXTS, "s", decides="negative prompt 1")) == 3
    assert draws(setting, lambda: setting.draw(call, TEXTS, "s", decides="negative prompt 2")) == 3
    assert call.drawn == 9


def test_a_damaged_picture_is_drawn_again(setting: Setting, own: Any) -> None:
    """A file that is cut short or no picture is not taken for one."""
    good = setting.draw(own, TEXTS, "s")
    assert setting.folder is not None
    first, second, _ = sorted(setting.folder.rglob("*.png"))
    first.write_bytes(first.read_bytes()[:-20])
    second.write_bytes(b"not a picture")

    assert np.array_equal(setting.draw(own, TEXTS, "s"), good)


def test_a_folder_that_cannot_be_used_is_an_error(setting: Setting, own: Any, tmp_path: Path) -> None:
    """It names the place."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageFailed, match="file"):
        replace(setting, folder=tmp_path / "file" / "pictures").draw(own, TEXTS, "s")


def test_the_pipe_shows_its_own_progress_bars_again(setting: Setting, own: Any) -> None:
    """Drawing for an evaluation hides them for its own calls alone, also where a call fails."""
    own.set_progress_bar_config(leave=False)

    setting.draw(own, ["a boat"], "s")
    with pytest.raises(ZeroDivisionError):
        setting.draw(lambda *_, **__: 1 / 0, ["a boat"], "s")

    assert own._progress_bar_config == {"leave": False}


@pytest.mark.parametrize("templates", [None, ("a photo of {name}", "{name}", "{name} at sea")])
def test_with_more_images_of_each_person_the_former_stay(setting: Setting, templates: tuple[str, ...] | None) -> None:
    """Their prompts and seeds are the same, so that none is drawn anew."""
    few, more = (replace(setting, images_per_person=n, people_limit=3, templates=templates) for n in (2, 4))
    asked = [{(one.text, one.label) for one in ask_for_people(each, "seen")} for each in (few, more)]

    assert asked[0] < asked[1]


def test_nothing_to_draw_is_an_error(setting: Setting, own: Any) -> None:
    """No figure comes from no picture."""
    with pytest.raises(InvalidInput, match="found 0 texts"):
        setting.draw(own, [], "s")
    with pytest.raises(InvalidInput, match="2 labels"):
        setting.draw(own, TEXTS, "s", labels=["a", "b"])


def test_a_killed_run_goes_on(setting: Setting, own: Any) -> None:
    """A process is killed while it draws; what it kept is whole, is used, and the result is that of one run."""
    assert setting.folder is not None
    program = (
        "import sys; from pathlib import Path; from apl_guard.testing import random_prefix, tiny_pipe\n"
        "from apl_guard.trainer.evaluate.setting import Setting\n"
        "pipe = tiny_pipe(); setting = Setting.of(pipe, random_prefix(pipe, n=3), None, steps=1, batch=1,\n"
        "    folder=Path(sys.argv[1]), progress=False)\n"
        "setting.draw(setting.guard, [f'a photo of {k}' for k in range(4000)], 's')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(setting.folder)], env={**os.environ})
    try:
        deadline = time.monotonic() + 600
        while len(list(setting.folder.rglob("*.png"))) < 5:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = len(list(setting.folder.rglob("*.png")))
    texts = [f"a photo of {k}" for k in range(kept + 2)]

    new = draws(setting, lambda: setting.draw(setting.guard, texts, "s"))

    assert new == 2
    afresh = replace(setting, folder=None).draw(setting.guard, texts[:4], "s")
    assert np.abs(setting.draw(setting.guard, texts[:4], "s").astype(int) - afresh).max() <= 1


@pytest.mark.parametrize("family", ["stable_diffusion_3", "flux"])
def test_a_transformer_of_sixteen_bits_is_drawn_from_beside_text_encoders_of_thirty_two(
    family: str, tmp_path: Path
) -> None:
    """As a large model is opened on a GPU, plain and guarded; such pictures are not taken for those of 32 bits."""
    pipe = tiny_pipe(family=family)
    pipe.default_sample_size = 8
    setting = Setting.of(pipe, random_prefix(pipe, n=2), None, steps=1, folder=tmp_path, progress=False)
    whole = setting.draw(pipe, TEXTS, "example")
    pipe.transformer.to(torch.bfloat16)

    pictures = [setting.draw(call, TEXTS, "example") for call in (pipe, setting.guard)]

    assert all(some.shape == whole.shape == (3, 16, 16, 3) for some in pictures)
    assert 0 < np.abs(pictures[0].astype(int) - whole).mean() < 10
    assert not np.array_equal(pictures[0], pictures[1])


POLICY_OF_A_LIST = """
apiVersion: apl-guard/v1
kind: Policy
metadata: {name: listed, version: 1}
spec:
  names: [{id: stars, people: [{name: Ada}]}]
  rules:
    - {id: prompts, when: {channels: [prompt]}, then: {action: allow}}
    - {id: stars, when: {channels: [prompt], names: [stars]}, then: {action: anonymize}}
"""


def test_under_a_policy_of_ones_own_each_prompt_is_decided_about_alone(own: Any, tmp_path: Path) -> None:
    """A prompt that names nobody is drawn without the prefix beside one that does, as in calls of their own."""
    prefix = random_prefix(own, n=3)
    policy = tmp_path / "listed.yaml"
    policy.write_text(POLICY_OF_A_LIST)
    setting = Setting.of(own, prefix, None, policy, steps=1, folder=None, progress=False)
    usual = Setting.of(own, prefix, None, steps=1, folder=None, progress=False, batch=1)
    asked = [Asked(text, "", None, {}, {}) for text in TEXTS]

    drawn = setting.draw(setting.guard, TEXTS, "s")

    plain, guarded = usual.draw(own, TEXTS, "s"), usual.draw(usual.guard, TEXTS, "s")
    assert np.array_equal(drawn, np.stack([guarded[0], plain[1], guarded[2]]))
    assert (setting.prefixed(asked), usual.prefixed(asked)) == ({"prefixed": 2}, {"prefixed": 3})
    assert setting.on(own).policy is setting.policy, "a setting on another model keeps it"


def test_pictures_of_another_detector_are_drawn_anew(own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders with a detector in each, and one policy: what one of them decided is not read for the other."""
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        names = tmp_path / str(seed)
        monkeypatch.setenv("APL_GUARD_NAMES", str(names))
        tokenizer = CLIPTokenizerFast.from_pretrained(minifaces.model_path() / "tokenizer")
        save_person_reader(tokenizer, new_reader(tokenizer), names / "person")
        setting = Setting.of(
            own, random_prefix(own, n=3), None, "anonymize_persons", steps=1, folder=tmp_path / "p", progress=False
        )
        drawn.append(draws(setting, lambda setting=setting: setting.draw(setting.guard, TEXTS, "s")))
        assert draws(setting, lambda setting=setting: setting.draw(setting.guard, TEXTS, "s")) == 0

    assert drawn == [len(TEXTS), len(TEXTS)]


def test_nothing_is_kept_where_a_rule_names_a_registered_prefix(own: Any, tmp_path: Path) -> None:
    """Another one may have that name tomorrow."""
    prefix = random_prefix(own, n=3)
    PrefixRegistry().register(prefix.save(tmp_path / "prefix"), name="mine")
    policy = tmp_path / "named.yaml"
    policy.write_text(POLICY_OF_A_LIST.replace("{action: anonymize}", "{action: anonymize, prefix: mine}"))
    setting = Setting.of(own, prefix, None, policy, steps=1, folder=tmp_path / "pictures", progress=False)

    setting.draw(setting.guard, TEXTS, "s")

    assert setting.folder is None
    assert not (tmp_path / "pictures").exists()
