"""The protocol of the paper's authors, on any model: faces by recognisers from files, quality by CLIP.

    run          from top to bottom: who is looked for, by whom, and what was found
    protocol     its settings and figures
    references   the pictures by which people are known
    faces        who says how alike two faces are
    recognisers  those who say it of photographs, opened from ONNX files
    clip         CLIPScore and the features of the Fréchet distance

On the reference world its own judges say how alike faces are.
"""

from apl_guard.trainer.evaluate.apl2026.run import evaluate_apl_2026 as evaluate_apl_2026

__all__ = ["evaluate_apl_2026"]
