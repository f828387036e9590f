"""What tells models apart, and so the latents, pictures and figures that were made with them."""

from peft import LoraConfig

from apl_guard.testing import tiny_pipe
from apl_guard.trainer.model.pipeline import model_digest


def test_how_strongly_an_adapter_acts_is_part_of_a_model() -> None:
    """At half the strength its weights are the same and its pictures are not, nor the latents that training makes."""
    pipe = tiny_pipe()
    seen = [model_digest(pipe)]
    pipe.unet.add_adapter(LoraConfig(r=1, target_modules=["to_k"], init_lora_weights=False), "person")
    seen.append(model_digest(pipe))
    pipe.unet.set_adapters("person", 0.5)
    seen.append(model_digest(pipe))
    pipe.unet.disable_adapters()
    seen.append(model_digest(pipe))

    assert len(set(seen)) == 4
    assert model_digest(tiny_pipe()) == seen[0]


def test_what_stands_for_an_empty_negative_prompt_is_part_of_a_model_of_sdxl() -> None:
    """Zeros or the empty prompt: the same weights draw other pictures, so latents of the one are not the other's."""
    pipe = tiny_pipe(family="stable_diffusion_xl")
    zeros = model_digest(pipe)

    pipe.register_to_config(force_zeros_for_empty_prompt=False)

    assert model_digest(pipe) != zeros
