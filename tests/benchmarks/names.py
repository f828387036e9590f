"""How long lists of names take: python -m tests.benchmarks.names [NUMBER OF NAMES]

Prints the time to load the list, the time for a prompt, and beside it the same search by one regular expression of RE2
over the same names, as ratio.
"""

from __future__ import annotations

import random
import sys
import time
from statistics import median

from apl_guard.detect.names import NamesIndex
from apl_guard.policy import Listed, Names
from apl_guard.request.canonical import canonical

SYLLABLES = "ka ma ra vo ss ti en lo ber gri sha dun wil ter nor pel qui zan hol mey ric ast".split()  # noqa: SIM905
PROMPT = "a photo of {} in a red shirt, standing in the rain at night, 35mm, bokeh, highly detailed, by the old harbour"


def main() -> None:
    """Measure and print."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    choose = random.Random(0)

    def word() -> str:
        return "".join(choose.choices(SYLLABLES, k=choose.randint(2, 4))).title()

    names = [f"{word()} {word()}" for _ in range(number)]
    listed = tuple(Listed(name, (), "a person") for name in names)
    began = time.process_time()
    index = NamesIndex([Names(id="names", file="names.csv").holding(listed, "0" * 64)])
    print(f"{number} names loaded in {time.process_time() - began:.1f} s of processor time")

    prompts = [PROMPT.format(choose.choice(names)) for _ in range(500)]
    ours = _seconds(lambda text: index.find(canonical(text)), prompts)
    assert all(index.find(canonical(prompt)) for prompt in prompts)
    print(f"a prompt of {len(PROMPT)} characters, made canonical and searched: {1e6 * ours:.0f} µs")

    few = min(number, 10_000)
    import re2

    options = re2.Options()
    options.max_mem = 1 << 30
    expression = re2.compile("(?i)" + "|".join(rf"\b{name}\b" for name in names[:few]), options)
    theirs = _seconds(lambda text: list(expression.finditer(text)), prompts[:50])
    print(f"one expression of RE2 over {few} of the names: {1e6 * theirs:.0f} µs, {theirs / ours:.1f} × ours")


def _seconds(call: object, prompts: list[str]) -> float:
    """Median seconds of a call, of processor time: others may be at work beside it."""
    taken = []
    for prompt in prompts:
        began = time.process_time()
        call(prompt)  # type: ignore[operator]
        taken.append(time.process_time() - began)
    return median(taken)


if __name__ == "__main__":
    main()
