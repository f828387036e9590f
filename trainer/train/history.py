"""The course of a run: one JSON object a line, for each step and for each evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apl_guard.errors import StorageFailed
from apl_guard.storage import write_file

_SMOOTHING = 0.95


class History:
    """Collects what a run saw, and writes it when the state is saved, so that both tell of the same steps.

    Args:
        path: The file. What is in it already is kept up to the step of the checkpoint.
        keep_until: That step; what came after it is done again.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     history = History(Path(folder, "history.jsonl"), keep_until=0)
        ...     history.add(step=1, identity=0.5, generic=0.1)
        ...     history.flush()
        ...     history.path.read_text()
        '{"step": 1, "identity": 0.5, "generic": 0.1}\\n'
    """

    def __init__(self, path: Path, keep_until: int) -> None:
        self.path = path
        self.entries: list[dict[str, Any]] = []
        self.smooth: dict[str, float] = {}
        """Running means of the loss terms, for the eye."""
        if path.exists() and keep_until:
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    break  # the line that was being written when the run was killed
                # The evaluation at the checkpoint's own step is done again.
                if entry["step"] > keep_until or (entry["step"] == keep_until and "gap_closed" in entry):
                    break
                self.add(**entry)
        # Whole or as it was: what a killed run leaves behind is read by the next.
        write_file(path, self.to_bytes())
        self._written = len(self.entries)

    def to_bytes(self) -> bytes:
        """All entries, as they stand in the file."""
        return "".join(json.dumps(entry) + "\n" for entry in self.entries).encode()

    def add(self, **entry: Any) -> None:
        """Add an entry."""
        for key in ("identity", "generic"):
            if key in entry:
                before = self.smooth.get(key, entry[key])
                self.smooth[key] = _SMOOTHING * before + (1 - _SMOOTHING) * entry[key]
        self.entries.append(entry)

    def flush(self) -> None:
        """Write what was added since the last time.

        Raises:
            StorageFailed: The file cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in self.entries[self._written :])
        except OSError as error:
            raise StorageFailed(f"the history cannot be written: {error.strerror}", path=self.path) from error
        self._written = len(self.entries)


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read the history beside a prefix; an empty list where there is none."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
