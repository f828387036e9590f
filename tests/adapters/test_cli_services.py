"""`apl-guard generate` with a service in place of a model."""

from functools import partial

import pytest
from a1111_server import A1111Server
from comfyui_server import ComfyUIServer
from PIL import Image
from services import Service, Status, b64, png, raising


@pytest.fixture
def run(run, tmp_path):
    """Run `apl-guard generate` in this process; its exit code, output and errors."""
    return partial(run, "generate", "--output", tmp_path / "out")


@pytest.fixture
def folder(prefix, tmp_path):
    return prefix.save(tmp_path / "trained")


def test_a1111(run, folder, prefix, tmp_path):
    """A picture and a line for each prompt, with seed, steps and guidance as asked."""
    server = A1111Server({prefix.embedding_name: (prefix.n, 32)})
    options = ("--prefix", folder, "--seed", 7, "--steps", 3, "--guidance", 5, "--checkpoint", "6ce0161689")
    code, out, _ = run("--model", f"a1111:{server.url}", *options, "a man", "a cat")

    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["000", "anonymize"], ["001", "anonymize"]]
    sent = server.posted("/sdapi/v1/txt2img")[0]
    assert (sent["prompt"], sent["seed"]) == (f"{prefix.embedding_name} a man", 7)
    assert (sent["steps"], sent["cfg_scale"]) == (3, 5)
    assert Image.open(tmp_path / "out" / "001.png").size == (8, 8)
    server.close()


def test_comfyui(run, folder, prefix):
    """The plain workflow with the checkpoint that was named."""
    server = ComfyUIServer({prefix.embedding_name: (prefix.n, None)})
    code, out, _ = run("--model", f"comfyui:{server.url}", "--prefix", folder, "--checkpoint", "x.safetensors", "a man")

    assert (code, out.split()[:2]) == (0, ["000", "anonymize"])
    sent = server.posted("/prompt")[0]["prompt"]
    assert sent["1"]["inputs"]["ckpt_name"] == "x.safetensors"
    assert sent["3"]["inputs"]["text"] == f"embedding:{prefix.embedding_name} a man"
    server.close()


def test_openai(run, monkeypatch):
    """Blocked by the default policy, which nothing is sent for; drawn by one that says so. The key is not shown."""
    monkeypatch.setenv("APL_GUARD_API_KEY", "sk-secret")
    service = Service({"POST /v1/images/generations": lambda body: {"data": [{"b64_json": b64(png())}]}})
    model = ("--model", f"openai:{service.url}/v1", "--checkpoint", "m")
    code, out, err = run(*model, "a man")
    assert (code, out.split()[:2], service.seen) == (3, ["000", "block"], [])

    code, out, err = run(*model, "--policy", "unsafe_allow_all", "a man")
    assert (code, out.split()[:2]) == (0, ["000", "allow"])
    assert service.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "secret" not in out + err
    service.close()


def test_a_service_that_fails(run, folder, prefix, tmp_path):
    """One line on the error output, exit code 1, no picture."""
    server = A1111Server({prefix.embedding_name: (prefix.n, 32)})
    server.routes["POST /sdapi/v1/txt2img"] = raising(Status(500, b'{"detail": "Mara Voss"}'))
    code, out, err = run("--model", f"a1111:{server.url}", "--prefix", folder, "Mara Voss")

    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: http://127.0.0.1")
    assert "Mara" not in err
    assert list((tmp_path / "out").iterdir()) == []
    server.close()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--model", "comfyui:http://127.0.0.1:1"), 2, "--checkpoint"),
        (("--model", "openai:https://api.example/v1"), 2, "--checkpoint"),
        (("--model", "a1111:http://draw.example"), 2, "insecure_http"),
        (("--model", "a1111:http://127.0.0.1:1"), 4, "prefix"),
        (("--model", "a1111:ftp://127.0.0.1:1"), 2, "base_url"),
        (("--model", "a1111:http://127.0.0.1:1", "--device", "cpu"), 2, "--device: goes with a model that runs here"),
        (("--model", "minifaces", "--checkpoint", "0123"), 2, "--checkpoint: goes with a service"),
        (("--model", "minifaces", "--insecure-http"), 2, "--insecure-http: goes with a service"),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_code(run, options, code, message):
    """2 for wrong input, 4 where the guard cannot do its work."""
    found, out, err = run(*options, "a man")

    assert (found, out) == (code, "")
    assert message in err.splitlines()[-1]


def test_a_service_that_gives_no_picture(run):
    """One line, and code 1."""
    service = Service({"POST /v1/images/generations": lambda body: {"data": []}})

    code, out, err = run(
        *("--model", f"openai:{service.url}/v1", "--checkpoint", "m", "--policy", "unsafe_allow_all", "a man")
    )

    assert (code, out) == (1, "")
    assert "gave no image for prompt 0" in err
    service.close()


@pytest.mark.parametrize("model", [("a1111:",), ("comfyui:", "--checkpoint", "x.safetensors")])
def test_a_service_that_cannot_be_asked(run, folder, model):
    """One line that says what is wrong with it: nothing runs there, or what runs has no such API. It is not quoted."""
    kind, *options = model
    service = Service(
        {f"GET {path}": raising(Status(404, b"Mara Voss")) for path in ("/sdapi/v1/embeddings", "/embeddings")}
    )
    options += ["--prefix", folder, "a man"]
    _, _, unknown = run("--model", f"{kind}{service.url}", *options)
    service.close()
    code, out, nothing = run("--model", f"{kind}{service.url}", *options)

    assert (code, out) == (4, "")
    assert "embeddings: ConnectError, so there is no answer" in nothing
    assert "embeddings: status 404" in unknown
    assert "Mara" not in unknown
