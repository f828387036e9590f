"""Workflows to run."""

from apl_guard.adapters.comfyui import text_to_image

MODEL = "sd15.safetensors"


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def workflow(prompt="a man", negative="blur", **more):
    return text_to_image(MODEL, prompt, negative, seed=1, steps=1) | more
