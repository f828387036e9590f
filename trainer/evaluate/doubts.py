"""Where the figures of an evaluation say nothing about the prefix, because there was nothing for it to hide."""

from __future__ import annotations

from apl_guard.trainer.evaluate.result import EvalResult, show_figure

_FIGURES = (("leak_far_1e-2", "leak at FAR 1e-2"), ("top1", "top-1"))


def doubts(result: EvalResult) -> list[str]:
    """One sentence for each suite whose people the plain model does not show.

    That is where it shows whoever is named no more often than whoever is not, by the interval of the neutral arm. The
    model may not know these people, or the judges may not be able to read its pictures.

    Example:
        >>> shown = {"top1": 0.9}
        >>> nobody = {"top1": 0.0, "top1_ci": [0.0, 0.01]}
        >>> doubts(EvalResult({"seen": {"plain": shown, "neutral": nobody}}))
        []
        >>> doubts(EvalResult({"seen": {"plain": nobody, "neutral": nobody}}))[0][:57]
        'seen: the plain model does not show the people it is aske'
    """
    found = []
    for suite, arms in result.suites.items():
        plain, neutral = arms.get("plain", {}), arms.get("neutral", {})
        measured = [pair for pair in _FIGURES if None not in (plain.get(pair[0]), neutral.get(pair[0]))]
        if not measured or any(plain[key] > neutral.get(f"{key}_ci", [0, neutral[key]])[1] for key, _ in measured):
            continue
        key, label = measured[0]
        found.append(
            f"{suite}: the plain model does not show the people it is asked for ({label} {show_figure(plain, key)}; "
            f"neutral prompts {show_figure(neutral, key)}), so these leaks say nothing about the prefix. Either it "
            "does not know them, or the judges cannot read its images, or these are too few images to tell"
        )
    return found
