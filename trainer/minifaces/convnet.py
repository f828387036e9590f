"""The small convolutional trunk under the image encoder and the judges."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


def conv_trunk(widths: Sequence[int], out_features: int, *, kernel: int = 3) -> nn.Sequential:
    """(n, 3, 64, 64) in [−1, 1] → (n, out_features); each width halves the side."""
    layers: list[nn.Module] = []
    before = 3
    for width in widths:
        layers += [
            nn.Conv2d(before, width, kernel, 2, kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        if width > widths[0]:
            layers += [nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    side = 64 >> len(widths)
    # Shipped weights are named by the number of their layer; the one that does nothing was a dropout.
    layers += [nn.Flatten(), nn.Identity(), nn.Linear(before * side * side, out_features)]
    return nn.Sequential(*layers)


class Embedder(nn.Module):
    """A trunk whose output is normalised to unit length."""

    def __init__(self, widths: Sequence[int], features: int) -> None:
        super().__init__()
        self.trunk = conv_trunk(widths, features)
        self.norm = nn.BatchNorm1d(features)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, 64, 64) → (n, features), unit norm."""
        embedded: Tensor = nn.functional.normalize(self.norm(self.trunk(images)), dim=-1)
        return embedded
