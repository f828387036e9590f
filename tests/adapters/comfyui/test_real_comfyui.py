"""The adapter against a real ComfyUI, on demand:

    APL_GUARD_COMFYUI=http://127.0.0.1:8188 APL_GUARD_COMFYUI_FOLDER=…/ComfyUI \\
        APL_GUARD_COMFYUI_CHECKPOINT=sd15.safetensors python -m pytest tests/adapters/comfyui/test_real_comfyui.py

The folder is the server's, so that a prefix can be put into models/embeddings. The checkpoint is of the family SD 1.5;
random weights will do.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from apl_guard import ComfyUI, Fingerprint, Guard, Prefix, PrefixMetadata, PrefixNotApplied
from apl_guard.adapters.comfyui import text_to_image
from apl_guard.adapters.comfyui.graph import read_graph, with_prefix
from apl_guard.adapters.prompts.token_bounds import byte_bound
from apl_guard.adapters.remote.http_client import RemoteRefused

URL = os.environ.get("APL_GUARD_COMFYUI")
CHECKPOINT = os.environ.get("APL_GUARD_COMFYUI_CHECKPOINT", "")
SIZE = {"width": 64, "height": 64, "steps": 1, "seed": 3}

pytestmark = pytest.mark.skipif(URL is None, reason="needs a running ComfyUI: set APL_GUARD_COMFYUI")


@pytest.fixture(scope="module")
def prefix():
    """Ten random vectors of CLIP-L's width, large enough to be seen in the picture."""
    vectors = torch.randn(10, 768, generator=torch.Generator().manual_seed(0))
    of = {"text_encoder": Fingerprint(weights="ab" * 32, tokenizer="cd" * 32)}
    metadata = PrefixMetadata(
        name="random", n=10, widths={"text_encoder": 768}, fingerprints=of, created=datetime.now(UTC)
    )
    return Prefix({"text_encoder": vectors}, metadata)


@pytest.fixture
def file(prefix):
    """The exported prefix in the server's folder."""
    folder = Path(os.environ["APL_GUARD_COMFYUI_FOLDER"], "models", "embeddings")
    path = folder / f"{prefix.embedding_name}.safetensors"
    header = {"apl_guard_digest": prefix.digest}
    save_file({"clip_l": prefix.vectors["text_encoder"].contiguous()}, path, metadata=header)
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def client():
    return ComfyUI(URL, models=[CHECKPOINT], time_limit=300)


def picture(target, workflow):
    return target(workflow).images[0].tobytes()


def test_the_picture_is_that_of_the_embedding_in_the_prompt(file, client, prefix):
    """Written by hand or by the guard; without it the picture is another."""
    guard = Guard(client, prefix=prefix)
    by_hand = f"embedding:{prefix.embedding_name} a photo of a man"

    guarded = picture(guard, text_to_image(CHECKPOINT, "a photo of a man", **SIZE))

    assert guarded == picture(client, text_to_image(CHECKPOINT, by_hand, **SIZE))
    assert guarded != picture(client, text_to_image(CHECKPOINT, "a photo of a man", **SIZE))


def test_long_prompts_and_weights_run(file, client, prefix):
    """The workflow with further nodes is valid, and each chunk of it matters."""
    guard = Guard(client, prefix=prefix)
    one, other = "a (man:1.2) in a park, " * 12 + "red", "a (man:1.2) in a park, " * 12 + "blue"
    workflow = text_to_image(CHECKPOINT, one, **SIZE)
    sent = with_prefix(read_graph(workflow, frozenset([CHECKPOINT]), frozenset()), "x", 10, byte_bound)

    assert sum(node["class_type"] == "ConditioningConcat" for node in sent.values()) >= 2
    assert picture(guard, workflow) != picture(guard, text_to_image(CHECKPOINT, other, **SIZE))


def test_the_server_is_asked(file, client, prefix):
    """A file that goes away, and one of another prefix."""
    guard = Guard(client, prefix=prefix)
    save_file({"clip_l": torch.zeros(10, 768)}, file, metadata={"apl_guard_digest": "ab" * 32})
    with pytest.raises(PrefixNotApplied, match="another prefix"):
        guard(text_to_image(CHECKPOINT, "a man", **SIZE))
    file.unlink()
    with pytest.raises(PrefixNotApplied, match="has no embedding"):
        guard(text_to_image(CHECKPOINT, "a man", **SIZE))


def test_a_workflow_that_it_refuses(client):
    """With what it says about the nodes."""
    workflow = text_to_image(CHECKPOINT, "a man", **SIZE)
    workflow["5"]["inputs"]["sampler_name"] = "nothing"
    with pytest.raises(RemoteRefused) as caught:
        client(workflow)
    assert "5" in caught.value.detail["node_errors"]
