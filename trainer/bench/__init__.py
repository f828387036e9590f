"""The bench: every peer on the same people, prompts and seeds, and on models that others made afterwards."""
