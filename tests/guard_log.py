"""What a guard wrote into its log, and what it counted, as the tests of the guard read it."""

import json


def text_of(folder):
    """Everything in the segments of a log."""
    return "".join(path.read_text() for path in sorted((folder / "segments").iterdir()))


def records(folder):
    """What the guard recorded; what the log records about itself is left out."""
    found = [json.loads(line) for line in text_of(folder).splitlines()]
    return [record for record in found if record["event"].startswith("guard.")]


def counted(registry, result):
    return registry.get_sample_value("apl_guard_outcomes_total", {"result": result})
