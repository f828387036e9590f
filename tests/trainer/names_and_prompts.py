"""The people and the generic prompts of small trainings."""

NAMES = ("Ada Lum", "Bo Tarn", "Cy Wend", "Di Oak", "Ed Fell", "Flo Marsh", "Gus Holt", "Hal Reed")
THINGS = ("cat", "red car", "man", "house", "boat", "tree", "lamp", "dog")
GENERIC = tuple(f"a photo of a {thing}" for thing in THINGS)
