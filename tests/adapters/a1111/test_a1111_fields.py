"""What is asked of AUTOMATIC1111: each field is classified, styles are resolved, and the answer is the client's own."""

import pytest
from permitting import allowing
from services import Status, raising, records

from apl_guard import (
    A1111,
    Guard,
    InvalidInput,
    PolicyBlocked,
)
from apl_guard.adapters.a1111 import A1111Adapter
from apl_guard.adapters.remote.http_client import RemoteError
from apl_guard.request import Channel


def test_the_prefix_is_in_the_prompt_and_the_answer_is_the_clients(guard, server, prefix, tmp_path):
    """Same type, same fields, picture of the prompt with the prefix; both records are written."""
    made = guard.generate("a photo of Mara Voss", steps=3, seed=1, batch_size=2)

    sent = server.posted("/sdapi/v1/txt2img")[0]
    assert sent["prompt"] == f"{prefix.embedding_name} a photo of Mara Voss"
    assert sent["steps"] == 3
    bare = A1111(server.url)(f"{prefix.embedding_name} a photo of Mara Voss", steps=3, seed=1, batch_size=2)
    assert type(made.output) is type(bare)
    assert [image.tobytes() for image in made.output.images] == [image.tobytes() for image in bare.images]
    assert made.output.images[0].tobytes() != A1111(server.url)("a photo of Mara Voss", seed=1).images[0].tobytes()
    decision, outcome = records(tmp_path / "audit")
    assert decision["action"] == "anonymize"
    assert (outcome["result"], outcome["images"], outcome["prefix_digest"]) == ("passed", 2, prefix.digest)
    assert outcome["prefix_rows"] == {"text_encoder": [10]}


@pytest.mark.parametrize(
    ("fields", "channel"),
    [
        ({"init_images": ["aGk="]}, "image"),
        ({"mask": "aGk="}, "image"),
        ({"init_latent": [1]}, "latents"),
        ({"refiner_checkpoint": "other"}, "extension"),
        ({"refiner_checkpoint": 0, "refiner_switch_at": 0.1}, "extension"),  # servers with pydantic 1 read the text "0"
        ({"enable_hr": True, "hr_checkpoint_name": 0.0}, "extension"),
        ({"hr_checkpoint_name": "other"}, "extension"),
        ({"script_name": "x/y/z plot"}, "extension"),
        ({"alwayson_scripts": {"ADetailer": {"args": []}}}, "extension"),
        ({"infotext": "Mara Voss\nSteps: 1"}, "extension"),
        ({"override_settings": {"sd_model_checkpoint": "other"}}, "extension"),
        ({"override_settings": {"textual_inversion_add_hashes_to_infotext": False}}, "extension"),
        ({"override_settings_restore_afterwards": False}, "extension"),
        ({"override_settings_restore_afterwards": 0}, "extension"),
        ({"override_settings_restore_afterwards": None}, "extension"),
        ({"cfg_scale": 0.5}, "guidance"),
        ({"cfg_scale": -7}, "guidance"),
        ({"cfg_scale": "7"}, "guidance"),
        ({"hr_cfg": 0}, "guidance"),
        ({"image_cfg_scale": 0.5}, "guidance"),
        ({"image_cfg_scale": 8}, "guidance"),
        ({"cfg_scale": 3, "image_cfg_scale": 3.5}, "guidance"),
        ({"sampler_name": "DDIM CFG++", "negative_prompt": "Mara Voss"}, "guidance"),
        ({"sampler_index": "ddim_cfgpp", "negative_prompt": "Mara Voss", "cfg_scale": 1}, "guidance"),
        ({"hr_sampler_name": "DDIM cfg++", "hr_negative_prompt": "Mara", "cfg_scale": 20, "hr_cfg": 12}, "guidance"),
        ({"surprise": 1}, "surprise"),
        ({"prompt_2": "Mara Voss"}, "prompt_2"),
    ],
    ids=str,
)
def test_fields_that_bring_other_content_are_blocked(guard, server, fields, channel):
    """Known ones by their channel, unknown ones by their name."""
    with pytest.raises(PolicyBlocked, match=channel):
        guard("a cat", **fields)

    assert server.posted("/sdapi/v1/txt2img") + server.posted("/sdapi/v1/img2img") == []


@pytest.mark.parametrize(
    "fields",
    [
        {"sampler_name": "DDIM CFG++", "cfg_scale": 1},
        {"sampler_name": "DDIM CFG++", "cfg_scale": 12.5, "negative_prompt": "blur"},
        {"sampler_name": "DDIM", "negative_prompt": "blur"},
    ],
)
def test_a_sampler_that_divides_guidance_is_harmless(guard, fields):
    """Without a negative prompt, or with so much guidance that at least 1 is left."""
    assert guard.check("a man", **fields).effective == "anonymize"


@pytest.mark.parametrize(("last", "is_blocked"), [(1, False), (2, False), (3, True), (12, True), ("2", True)])
def test_an_early_layer_of_the_text_encoder_is_blocked(guard, last, is_blocked):
    """The prefix has had little time to act there, and none at all below the first."""
    decision = guard.check("a man", override_settings={"CLIP_stop_at_last_layers": last})

    assert ("attention" in [reason.channel for reason in decision.reasons]) == is_blocked


def test_what_a_policy_permits_goes_through_with_the_prefix(server, prefix):
    """An input picture, where a platform allows it: img2img, the prefix still in the prompt."""
    guard = Guard(A1111(server.url), allowing("image", "adapter_weights"), prefix=prefix)

    guard("a man <lora:style:0.5>", init_images=["aGk="], denoising_strength=0.5)

    sent = server.posted("/sdapi/v1/img2img")[0]
    assert sent["prompt"] == f"{prefix.embedding_name} a man <lora:style:0.5>"
    assert sent["init_images"] == ["aGk="]


def test_styles_are_resolved_before_the_decision(guard, server, prefix):
    """The text of a style is decided about, and stands behind the prefix."""
    server.styles = {"oil": ("an oil painting of {prompt}", "photo"), "bad": ("(x:99)", ""), "tail": ("sharp", "")}

    guard("a man", styles=["oil", "tail"], negative_prompt="blur", hr_prompt="close")

    sent = server.posted("/sdapi/v1/txt2img")[0]
    assert sent["prompt"] == f"{prefix.embedding_name} an oil painting of a man, sharp"
    assert sent["hr_prompt"] == f"{prefix.embedding_name} an oil painting of close, sharp"
    assert sent["negative_prompt"] == "blur, photo"
    assert not sent.get("styles")
    with pytest.raises(PolicyBlocked, match="prompt_syntax"):
        guard("a man", styles=["bad"])


def test_a_style_makes_a_negative_prompt_beside_that_of_the_second_pass(guard, server):
    """Each stays in its own field."""
    server.styles = {"oil": ("", "photo")}

    guard("a man", styles=["oil"], hr_negative_prompt="hands")

    sent = server.posted("/sdapi/v1/txt2img")[0]
    assert (sent["negative_prompt"], sent["hr_negative_prompt"]) == ("photo", "hands, photo")


def test_negative_prompts_stay_as_they_are(guard, server):
    """Guidance steers away from them."""
    guard("a man", negative_prompt="blurry (hands:1.2) BREAK x")

    assert server.posted("/sdapi/v1/txt2img")[0]["negative_prompt"] == "blurry (hands:1.2) BREAK x"


def test_shadow_sends_what_was_asked(server, tmp_path):
    """And needs no prefix."""
    server.routes["GET /sdapi/v1/embeddings"] = lambda _: {"loaded": {}, "skipped": {}}
    Guard(A1111(server.url), "shadow_anonymize_faces", audit=tmp_path / "audit")("a (man:9)", negative_prompt="x")

    sent = server.posted("/sdapi/v1/txt2img")[0]
    assert (sent["prompt"], sent["negative_prompt"]) == ("a (man:9)", "x")


def test_wrong_arguments(guard, server):
    """Named, before anything is sent."""
    for wrong in ({"prompt": 7}, {"prompt": ["a", "b"]}, {"styles": "oil"}, {"override_settings": [1]}, {"steps": {1}}):
        with pytest.raises(InvalidInput):
            guard(**{"prompt": "a", **wrong})
    with pytest.raises(TypeError):
        guard("a", "b")
    for hidden in ("send", "http", "steps"):
        with pytest.raises(AttributeError):
            getattr(guard, hidden)
    assert server.posted("/sdapi/v1/txt2img") == []


def test_the_prompt_is_snapshotted():
    """A text that says one thing to the guard and another to the server becomes plain; lists are copied."""

    class Sly(str):
        def __str__(self):
            return "other"

    adapter = A1111Adapter(A1111("http://127.0.0.1:1"))
    adapter._embeddings = {}
    settings_given = {"samples_format": "png"}
    request = adapter.read((Sly("a cat"),), {"override_settings": settings_given})
    settings_given["sd_model_checkpoint"] = "other"

    assert request.text[Channel.PROMPT] == ("a cat",)
    assert type(request.text[Channel.PROMPT][0]) is str
    assert request.arguments["fields"]["override_settings"] == {"samples_format": "png"}


@pytest.mark.parametrize("fault", [Status(500), Status(200, b"7"), Status(200, b'{"oil": {}}')])
def test_a_style_server_that_fails(guard, server, tmp_path, fault):
    """No picture; the error is the server's, on record and in the metrics, too."""
    server.routes["GET /sdapi/v1/prompt-styles"] = raising(fault)

    with pytest.raises(RemoteError):
        guard("a man", styles=["oil"])
    assert server.posted("/sdapi/v1/txt2img") == []
    assert records(tmp_path / "audit")[-1]["result"] == "backend_error"
    counted = guard._parts.metrics_registry.get_sample_value
    assert counted("apl_guard_outcomes_total", {"result": "backend_error"}) == 1
    assert counted("apl_guard_outcomes_total", {"result": "invalid"}) in (0, None)
