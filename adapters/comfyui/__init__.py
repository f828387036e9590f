"""ComfyUI."""

from .adapter import ComfyUI, ComfyUIAdapter, ComfyUIImages, text_to_image

__all__ = ["ComfyUI", "ComfyUIAdapter", "ComfyUIImages", "text_to_image"]
