"""People added to a model after its prefix was trained: by DreamBooth, by LoRA, by textual inversion.

Each way is one file that uses the field's own means, and what it makes loads as everybody's does: a UNet folder,
``load_lora_weights``, ``load_textual_inversion``.
"""
