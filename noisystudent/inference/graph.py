"""The graph that is exported: a model with its temperature, and by choice the clean view of raw images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from noisystudent.data.decode import clean_share
from noisystudent.models.classifier import Classifier


class Graph(nn.Module):
    """A model with its temperature, and by choice with the clean view of raw images.

    Args:
        model: in evaluation mode, in float32.
        temperature: the logits are divided by it before the softmax.
        raw_images: the graph makes the clean view itself.
    """

    def __init__(self, model: Classifier, temperature: float, *, raw_images: bool) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature
        self.view = CleanView(model.resolution) if raw_images else nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits (B, K), and softmax(logits / temperature) (B, K), both float32.

        Images are (B, 3, S, S) uint8, or (B, H, W, 3) uint8 of any size if the graph makes the view.
        """
        logits = self.model(self.view(images))
        return logits, torch.softmax(logits / self.temperature, dim=1)


class CleanView(nn.Module):
    """The clean view of `data.decode.view`, for images decoded at full size: crop and antialiased resize.

    A row of the result is a weighted sum of rows of the image, and so are its columns, so the view is two
    products of matrices. Only shapes of the graph depend on the size of the image, so that it can be exported
    for any size and any batch, without the operator Resize, which each runtime implements in its own way.
    Grey levels differ from those of `view`, whose sums are in integers, by at most 2 in about 1 % of them.

    Args:
        side: S, side in pixels of the view.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        """Compute the views: (B, H, W, 3) uint8 -> (B, 3, S, S) float32 with whole values of 0 to 255."""
        rows, columns = (torch.arange(images.shape[axis], dtype=torch.float64) for axis in (1, 2))
        height, width = rows[-1] + 1, columns[-1] + 1
        window = self._window(height, width)
        # Columns first and whole values in between, as in the 8-bit arithmetic of Pillow and torch.
        across = images.permute(0, 3, 1, 2).float() @ self._weights(columns, width, window).T
        down = self._weights(rows, height, window) @ _grey_levels(across)
        return _grey_levels(down)

    def _window(self, height: Tensor, width: Tensor) -> Tensor:
        """Side of the centred square, see `data.decode.window`."""
        shorter = torch.minimum(height, width)
        cropped = (shorter * clean_share(self.side)).round().clamp(min=1)  # half to even, as in Python
        return torch.where((height == self.side) & (width == self.side), shorter, cropped)

    def _weights(self, at: Tensor, size: Tensor, window: Tensor) -> Tensor:
        """Weights (S, N) of N rows or columns in each one of the view: Pillow's bicubic filter, a = -0.5."""
        start, scale = ((size - window) / 2).floor(), window / self.side
        centers = start + (torch.arange(self.side, dtype=torch.float64) + 0.5) * scale
        distance = (at + 0.5 - centers[:, None]).abs() / scale.clamp(min=1)
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        inside = (at >= start) & (at < start + window)
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0)) * inside
        return (weights / weights.sum(dim=1, keepdim=True)).float()


def _grey_levels(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255)
