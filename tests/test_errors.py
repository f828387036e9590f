"""Errors arrive whole where they are caught, also in another process than the one that raised them."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from policy_documents import policy

from apl_guard import Fingerprint, Guard, OutputWithheld, PolicyBlocked, errors
from apl_guard.adapters.remote.http_client import RemoteRefused
from apl_guard.backend import BackendFailed
from apl_guard.detect.output import Sighting

POLICY = policy(
    {"id": "text", "when": {"channels": ["prompt"]}, "then": {"action": "unsafe_allow"}},
    {"id": "images", "when": {"channels": ["image"]}, "then": {"action": "block"}},
)
FINGERPRINT = Fingerprint(weights="ab" * 32, tokenizer="cd" * 32)


def guard():
    return Guard(lambda prompt: [f"an image of {prompt}"], POLICY)


def decision():
    return guard().check("a cat", image="any")


OTHERS = {
    "PolicyBlocked": lambda: PolicyBlocked("found an image", decision=decision()),
    "OutputWithheld": lambda: OutputWithheld(
        "found somebody", decision=decision(), sightings=(Sighting(picture=0, entry="one", similarity=0.9),)
    ),
    "PrefixNotFound": lambda: errors.PrefixNotFound("found none", fingerprint=FINGERPRINT, near=True),
    "StorageFailed": lambda: errors.StorageFailed("the disk is full", path="out/grid.png"),
    "ExtraMissing": lambda: errors.ExtraMissing("eval", needs="matplotlib"),
    "InvalidInput": lambda: errors.InvalidInput("expected text, found int", where="prompt"),
    "RequestTooLarge": lambda: errors.RequestTooLarge("found 9 MB", where=Path("prompt")),
    "RemoteRefused": lambda: RemoteRefused("HTTP 503", status=503, detail={"error": "busy"}),
    "BackendFailed": lambda: BackendFailed("it hangs"),
}
"""How errors are made that take more than a message, and some that do not."""


@pytest.mark.parametrize("name", sorted({*errors.__all__, *OTHERS}))
@pytest.mark.parametrize("carry", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_an_error_is_the_same_after_it_was_carried(name, carry):
    """Its type, its message, what it holds, and what was noted on it."""
    error = OTHERS[name]() if name in OTHERS else getattr(errors, name)("found x; expected y")
    error.add_note("in the second part")

    carried = carry(error)

    assert type(carried) is type(error)
    assert (str(carried), carried.args, vars(carried)) == (str(error), error.args, vars(error))
    assert getattr(carried, "msg", None) == getattr(error, "msg", None)  # of an ImportError


def draw(prompt, **more):
    """What a worker of a pool does with a request."""
    return guard()(prompt, **more)


def test_a_pool_of_processes_outlives_a_blocked_request():
    """The caller gets the error with its decision, and the next request an answer."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(PolicyBlocked, match="image") as blocked:
            pool.submit(draw, "a cat", image="any").result(120)
        drawn = pool.submit(draw, "a cat").result(120)

    assert blocked.value.decision.action == "block"
    assert drawn == ["an image of a cat"]
