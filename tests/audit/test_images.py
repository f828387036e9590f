"""An image leads to the call that released it, and nothing else does."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from logs import expected
from PIL import Image
from policy_documents import policy

from apl_guard import Guard, PolicyBlocked
from apl_guard.audit import AuditLog
from apl_guard.audit.images import digest_of_file, image_digest, image_digests

ALLOWED = {"id": "all", "when": {"channels": ["prompt"]}, "then": {"action": "unsafe_allow"}}
STRICT = {"id": "strict", "when": {"channels": ["prompt"], "tenants": ["acme"]}, "then": {"action": "block"}}
PICTURES = arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(3)))


def by_the_book(picture):
    """As `docs/audit-format.md` says."""
    image = Image.fromarray(picture)
    head = f"apl-guard image 1 {image.width} {image.height}\n".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()


def noise(seed, size=16):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size + 1, 3), np.uint8))


@pytest.fixture
def released(folders, tmp_path):
    """A log of calls, and the image of each number in a file; whoever says "again" gets one that was there before."""
    log, witness = folders
    with AuditLog(log, witness=witness) as audit:

        def draw(prompt):
            return noise(0) if prompt == "again" else [noise(int(prompt)), noise(100 + int(prompt))]

        guard = Guard(draw, policy(ALLOWED, STRICT), audit=audit)
        for number in range(4):
            with guard.context(tenant=f"t{number}"):
                for name, image in zip(("first", "second"), guard(str(number)), strict=True):
                    image.save(tmp_path / f"{name}{number}.png")
        guard("again")
        with guard.context(tenant="acme"), pytest.raises(PolicyBlocked):
            guard("9")
    return log


@settings(max_examples=100)
@given(picture=PICTURES)
def test_the_digest_is_that_of_the_format_whatever_the_type_in_which_a_backend_returns_images(picture):
    """PIL, NumPy or torch, as bytes or as parts of one, alone, in a list, or as `images`."""
    floats = (picture / 255).astype(np.float32)
    image = Image.fromarray(picture)
    forms = [image, image.convert("RGBA"), picture, floats, floats[None], torch.from_numpy(floats).movedim(-1, 0)]
    for form in forms:
        assert image_digests([form], 1) == (by_the_book(picture),)
    assert image_digests([image, picture], 2) == (by_the_book(picture),) * 2
    assert image_digest(np.asfortranarray(picture)) == by_the_book(picture)


@settings(max_examples=100)
@given(one=PICTURES, other=PICTURES)
def test_other_pixels_or_another_shape_have_another_digest(one, other):
    """Also where the same bytes are as wide as the other is high."""
    same = one.shape == other.shape and bool((one == other).all())
    assert (image_digest(one) == image_digest(other)) is same
    turned = one.reshape(one.shape[1], one.shape[0], 3)
    assert (image_digest(turned) == image_digest(one)) is (one.shape[0] == one.shape[1])


@pytest.mark.parametrize("output", ["an image", None, [b"png"], torch.zeros(1, 4, 8, 8), np.full((1, 4, 4, 3), np.nan)])
def test_what_is_no_finished_image_has_no_digest(output):
    """Such as latents. The record says that there is none, rather than one of something else."""
    assert image_digests(output, 1) is None


def test_a_backend_that_miscounts_gives_no_digests():
    """Nobody could say which of them were released."""
    assert image_digests([noise(1)], 2) is None


def test_the_outcome_holds_a_digest_of_each_released_image_and_of_no_other(released):
    """A blocked call has none."""
    digests = {r["result"]: r["image_sha256"] for r in expected(released, event="guard.outcome")}
    assert digests["blocked"] is None
    outcomes = expected(released, event="guard.outcome", result="passed")
    found = [outcome["image_sha256"] for outcome in outcomes]
    assert found == [[by_the_book(np.asarray(noise(n + m))) for m in (0, 100)] for n in range(4)] + [found[0][:1]]


@pytest.mark.parametrize("form", ["png", "webp", "bmp", "tiff"])
def test_an_image_leads_to_its_call(released, tmp_path, run, form):
    """Through every format that keeps pixels: asked for, proved, and held against the receipt by somebody else."""
    kept = tmp_path / f"kept.{form}"
    Image.open(tmp_path / "second2.png").save(kept, **({"lossless": True} if form == "webp" else {}))

    code, out, _ = run("query", released, "--image", kept, "--json")
    (outcome,) = map(json.loads, out.splitlines())
    (decision,) = expected(released, event="guard.decision", decision_id=outcome["decision_id"])
    assert (code, decision["tenant"]) == (0, "t2")
    assert run("query", released, "--image", kept, "--tenant", "t2", "--json")[1] == out
    assert run("query", released, "--image", kept, "--tenant", "t1")[1] == "nothing found\n"

    receipt = tmp_path / "receipt.json"
    assert run("prove", released, "--image", kept, "--output", receipt)[0] == 0
    assert json.loads(receipt.read_text())["decision_id"] == outcome["decision_id"]
    verify = ("verify", receipt, "--public-key", released / "log.json", "--image")
    code, out, _ = run(*verify, kept)
    assert (code, "this image was released" in out) == (0, True)
    code, out, _ = run(*verify, tmp_path / "second1.png")
    assert (code, out.partition(";")[0]) == (3, "unverifiable  the receipt says nothing of this image")


def test_an_image_that_was_changed_leads_nowhere_and_says_so(released, tmp_path, run):
    """JPEG is a change."""
    changed = tmp_path / "changed.jpg"
    Image.open(tmp_path / "first1.png").save(changed)
    code, out, err = run("query", released, "--image", changed)
    assert (code, out, "JPEG" in err) == (0, "nothing found\n", True)
    code, _, err = run("prove", released, "--image", changed)
    assert code == 2
    assert "no call released an image with these pixels; JPEG" in err


def test_of_an_image_that_two_calls_released_each_is_named(released, tmp_path, run):
    """A receipt is for one of them."""
    image = tmp_path / "first0.png"
    ids = [
        r["decision_id"] for r in map(json.loads, run("query", released, "--image", image, "--json")[1].splitlines())
    ]
    code, _, err = run("prove", released, "--image", image)
    assert (code, len(ids)) == (2, 2)
    assert all(decision in err for decision in ids)
    assert run("prove", released, ids[0])[0] == 0


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_a_file_that_is_no_image_is_an_error_that_says_so(released, tmp_path, run, content):
    """Not an answer that nothing was found."""
    file = tmp_path / "odd.png"
    file.write_bytes(content)
    code, out, err = run("query", released, "--image", file)
    assert (code, out) == (2, "")
    assert str(file) in err
    assert "Traceback" not in err


def test_an_image_is_asked_for_in_a_log_or_held_against_a_receipt(released, tmp_path, run):
    """Wrong usage is said in so many words."""
    image = tmp_path / "first1.png"
    code, _, err = run("verify", released, "--image", image)
    assert (code, "audit query --image" in err) == (4, True)
    code, _, err = run("verify", tmp_path / "no such receipt.json", "--image", image)
    assert (code, "no such receipt.json" in err) == (4, True)
    code, _, err = run("prove", released)
    assert (code, "--image" in err) == (2, True)


def test_the_table_of_calls_names_the_digests(released, run):
    """In one cell, with blanks between."""
    out = run("export", released, "--csv")[1]
    assert by_the_book(np.asarray(noise(3))) + " " + by_the_book(np.asarray(noise(103))) + "," in out


def test_the_digest_of_a_file_turns_no_photograph_on_its_side(tmp_path):
    """What a note in the file says about turning it is done, as it is for images that a backend returns."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(1).save(tmp_path / "turned.png", exif=exif)
    assert digest_of_file(tmp_path / "turned.png") == image_digest(np.rot90(np.asarray(noise(1)), -1))


def test_an_image_has_one_digest_whatever_the_type_that_a_caller_asks_for(shared_pipe, prefix, folders):
    """That of the file in which it is kept; for latents, of which there is no image yet, none."""
    with AuditLog(folders[0]) as audit:
        guard = Guard(shared_pipe, prefix=prefix, audit=audit)
        made = {}
        for kind in ("pil", "np", "pt", "latent"):
            generator = torch.Generator().manual_seed(1)
            made[kind] = guard.generate("a cat", num_inference_steps=1, generator=generator, output_type=kind)
    digest = by_the_book(np.asarray(made["pil"].output.images[0]))
    assert [made[kind].outcome.image_sha256 for kind in made] == [(digest,)] * 3 + [None]
    assert [made[kind].outcome.images for kind in made] == [1] * 4


def test_who_stops_a_call_while_digests_are_made_leaves_an_outcome(folders):
    """Large images take a while, in which Ctrl-C may come."""

    class Stopped:
        @property
        def images(self):
            raise KeyboardInterrupt

    with AuditLog(folders[0]) as audit, pytest.raises(KeyboardInterrupt):
        Guard(lambda prompt: Stopped(), policy(ALLOWED), audit=audit)("a cat")
    (outcome,) = expected(folders[0], event="guard.outcome")
    assert (outcome["result"], outcome["images"], outcome["image_sha256"]) == ("failed", 0, None)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_only_a_file_is_read_as_an_image(released, tmp_path, run, kind):
    """Nobody waits for a named pipe into which nobody writes."""
    odd = tmp_path / "odd.png"
    os.mkfifo(odd) if kind == "pipe" else odd.mkdir()
    code, out, err = run("query", released, "--image", odd)
    assert code
    assert (out, str(odd) in err, "Traceback" in err) == ("", True, False)
