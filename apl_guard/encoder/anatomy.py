"""Whether a model is still made of the same modules and tensors, found out in a fraction of a millisecond.

What follows from the names of a model's parts can then be kept, and walking through the names avoided.
"""

from __future__ import annotations

import weakref
from operator import is_
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Anatomy", "has_parameter_named", "modules_of"]


class Anatomy:
    """The modules, parameters and buffers of a model, each as the object that it was when this was made.

    It keeps none of them alive.

    Args:
        model: The model.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> anatomy = Anatomy(model)
        >>> anatomy.is_of(model)
        True
        >>> model[0].bias = None
        >>> anatomy.is_of(model)
        False
    """

    def __init__(self, model: nn.Module) -> None:
        self._parts = [weakref.ref(part) for part in _parts_of(model)]

    def is_of(self, model: nn.Module) -> bool:
        """Whether a model has these parts, in this order, and no others."""
        found = _parts_of(model)
        return len(found) == len(self._parts) and all(map(is_, found, [part() for part in self._parts]))


def modules_of(model: nn.Module) -> list[Any]:
    """The modules of a model, itself first; one that it has in several places as often.

    Example:
        >>> from torch import nn
        >>> [type(module).__name__ for module in modules_of(nn.Sequential(nn.Linear(2, 2)))]
        ['Sequential', 'Linear']
    """
    # Past `modules()` and its like, which build a name for each part.
    modules: list[Any] = [model]
    for module in modules:  # grows on the way
        if module._modules:
            modules += [child for child in module._modules.values() if child is not None]
    return modules


def _parts_of(model: nn.Module) -> list[Any]:
    modules = modules_of(model)
    tensors: list[Any] = []
    for module in modules:
        if module._parameters:
            tensors += module._parameters.values()
        if module._buffers:
            tensors += module._buffers.values()
    return modules + [tensor for tensor in tensors if tensor is not None]


_known: weakref.WeakKeyDictionary[nn.Module, tuple[Anatomy, dict[str, bool]]] = weakref.WeakKeyDictionary()


def has_parameter_named(part: str, model: nn.Module) -> bool:
    """Whether the name of any parameter of a model holds a text. Looked up again when the model's parts change.

    Example:
        >>> from torch import nn
        >>> has_parameter_named("bias", nn.Linear(2, 2)), has_parameter_named("lora_", nn.Linear(2, 2))
        (True, False)
    """
    known = _known.get(model)
    if known is None or not known[0].is_of(model):
        known = _known[model] = Anatomy(model), {}
    if part not in known[1]:
        known[1][part] = any(part in name for name, _ in model.named_parameters())
    return known[1][part]
