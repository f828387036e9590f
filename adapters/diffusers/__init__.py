"""Pipelines of diffusers: which are covered, what their arguments mean, how a prefix gets in front of their prompts."""
