"""One suite over every adapter that comes with apl-guard, local and remote."""

import json

import pytest
import torch
from a1111_server import A1111Server
from comfyui_server import ComfyUIServer
from PIL import Image
from services import Service, Status, b64, png

from apl_guard import A1111, ComfyUI, OpenAIImages
from apl_guard.adapters.comfyui import text_to_image
from apl_guard.adapters.remote.http_client import RemoteRefused
from apl_guard.testing import random_prefix, tiny_pipe
from apl_guard.testing.conformance import AdapterConformance, Case


def pixels(one, other):
    return [image.tobytes() for image in one.images] == [image.tobytes() for image in other.images]


class Watched:
    """A route that tells when it is asked, and can be broken."""

    def __init__(self, route):
        self.route, self.watchers, self.is_broken = route, [], False
        self.answer = lambda content: self(content)

    def __call__(self, content):
        for watcher in self.watchers:
            watcher()
        if self.is_broken:
            raise Status(500)
        return self.route(content)

    def break_down(self):
        self.is_broken = True


def watched(service, route):
    found = Watched(service.routes[route])
    service.routes[route] = found.answer
    return found


def posted(service):
    """All that was sent to a service, as one text."""
    return lambda: "\n".join(json.dumps(content) for method, _, content in service.seen if method == "POST")


class TestDiffusers(AdapterConformance):
    @pytest.fixture
    def case(self, prefix):
        pipe = tiny_pipe()
        watchers = []

        def tell(*_):
            for watcher in watchers:
                watcher()

        pipe.unet.register_forward_pre_hook(tell)
        tokenizer, read = pipe.tokenizer, []

        def keep(_, args, kwargs):
            ids = (args[0] if args else kwargs["input_ids"]).flatten().tolist()
            read.append(tokenizer.decode([number for number in ids if 0 <= number < len(tokenizer)]))

        pipe.text_encoder.register_forward_pre_hook(keep, with_kwargs=True)

        def arguments(prompt):
            generator = torch.Generator().manual_seed(0)
            return (prompt,), {"num_inference_steps": 1, "guidance_scale": 1.0, "generator": generator}

        def fail(*_):
            raise RuntimeError("out of memory")

        return Case(
            pipe,
            arguments,
            prefix,
            watchers.append,
            lambda: pipe.unet.register_forward_pre_hook(fail) and None,
            RuntimeError,
            pixels,
            takes_lists=True,
            received=lambda: "\n".join(read),
        )


class TestA1111(AdapterConformance):
    @pytest.fixture
    def case(self, prefix):
        server = A1111Server({prefix.embedding_name: (prefix.n, 32)})
        route = watched(server, "POST /sdapi/v1/txt2img")
        yield Case(
            A1111(server.url),
            lambda prompt: ((prompt,), {"seed": 1, "override_settings": {}}),
            prefix,
            route.watchers.append,
            route.break_down,
            RemoteRefused,
            pixels,
            received=posted(server),
        )
        server.close()


class TestComfyUI(AdapterConformance):
    @pytest.fixture
    def case(self, prefix):
        server = ComfyUIServer({prefix.embedding_name: (prefix.n, None)})
        server.waits = 0
        route = watched(server, "POST /prompt")
        yield Case(
            ComfyUI(server.url, models=["sd15.safetensors"]),
            lambda prompt: ((text_to_image("sd15.safetensors", prompt, seed=1),), {}),
            prefix,
            route.watchers.append,
            route.break_down,
            RemoteRefused,
            pixels,
            received=posted(server),
        )
        server.close()


class TestOpenAIImages(AdapterConformance):
    @pytest.fixture
    def case(self):
        service = Service({"POST /images/generations": lambda body: {"data": [{"b64_json": b64(png(body["prompt"]))}]}})
        route = watched(service, "POST /images/generations")
        yield Case(
            OpenAIImages(service.url, "key", "m"),
            lambda prompt: ((prompt,), {"size": "256x256"}),
            None,
            route.watchers.append,
            route.break_down,
            RemoteRefused,
            pixels,
            received=posted(service),
        )
        service.close()


class TestFunction(AdapterConformance):
    @pytest.fixture
    def case(self):
        watchers = []
        broken = []
        drawn = []

        def draw(prompt):
            drawn.append(prompt)
            for watcher in watchers:
                watcher()
            if broken:
                raise OSError("no canvas")
            return [Image.new("L", (1, 1), len(prompt))]

        return Case(
            draw,
            lambda prompt: ((prompt,), {}),
            None,
            watchers.append,
            lambda: broken.append(1),
            OSError,
            lambda one, other: [i.tobytes() for i in one] == [i.tobytes() for i in other],
            takes_lists=True,
            received=lambda: "\n".join(drawn),
        )


def test_the_prefix_of_another_pipe_is_none_of_these(prefix):
    """So that the suites above test with a prefix that fits on purpose."""
    assert random_prefix(tiny_pipe(seed=3)).digest != prefix.digest
