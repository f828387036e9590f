"""What a prefix is trained on: people and what stands in for their names, prompts, pictures and their latents."""
