"""The arguments of a text encoder without the prefix that is among them, to measure what it changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["without_prefix"]

# What a text encoder takes for each token of a row.
_FOR_EACH_TOKEN = ("input_ids", "attention_mask", "position_ids", "mm_token_type_ids")


def without_prefix(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], padding: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Take the sentinel ids out of each row, and put as many places of padding where the row has its padding.

    Args:
        args: As the pipeline gives them; the first may be the ids and the second the attention mask.
        kwargs: As the pipeline gives them. The ids are of shape (B, L); what goes with them may have further
            dimensions in front, such as positions on several axes.
        padding: Id of the padding token.

    Example:
        >>> _, kwargs = without_prefix((), {"input_ids": torch.tensor([[7, -1, -2, 8, 0]])}, 0)
        >>> kwargs["input_ids"].tolist()
        [[7, 8, 0, 0, 0]]
    """
    by_place = _FOR_EACH_TOKEN[: min(len(args), 2)]
    given = dict(zip(by_place, args, strict=False)) | dict(kwargs)
    shape = given["input_ids"].shape
    rows = {
        name: given[name].cpu()
        for name in _FOR_EACH_TOKEN
        if isinstance(given.get(name), Tensor) and given[name].shape[-2:] == shape
    }
    plain = {name: torch.full_like(values, padding if name == "input_ids" else 0) for name, values in rows.items()}
    for row, ids in enumerate(rows["input_ids"]):
        keep = ids >= 0
        kept, gone = int(keep.sum()), int((~keep).sum())
        gap = _padding_of(rows, row, keep, padding)
        places = torch.arange(kept, device="cpu")  # whatever torch.set_default_device says
        places[gap:] += gone
        for name, values in rows.items():
            found = values[..., row, keep]
            if name == "position_ids":
                found = found - (~keep).cumsum(0)[keep]
                if gap < kept:
                    plain[name][..., row, gap : gap + gone] = found[..., gap : gap + 1]
            plain[name][..., row, places] = found
    new = {**given, **{name: values.to(given[name].device) for name, values in plain.items()}}
    return (*(new.pop(name) for name in by_place), *args[len(by_place) :]), new


def _padding_of(rows: Mapping[str, Tensor], row: int, keep: Tensor, padding: int) -> int:
    """Where the padding of a row begins, among what is kept of it; its end, where it has none."""
    mask = rows["attention_mask"][row, keep] if "attention_mask" in rows else None
    if mask is not None and not mask.all():
        return int((mask == 0).nonzero()[0])
    ids = rows["input_ids"][row]
    return 0 if ids[0] == padding != ids[-1] else int(keep.sum())
