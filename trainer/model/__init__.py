"""The model that is trained on or judged: opened, held still, and asked for one pass."""
