"""What a batch needs of each set, and how its images are fetched and decoded."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.data.gpu_decode import Encoded, Windows, gpu_decoder
from noisystudent.data.imageset import ImageSet, each_box
from noisystudent.data.transfer import upload

Rows = NDArray[np.int64]
"""(B,) rows of a set, or positions in its selected rows."""


class Part(NamedTuple):
    """Images to fetch from one set.

    Attributes:
        rows: (B,) their rows.
        boxes: (B, 4) crop boxes. None: the clean views.
        ahead: rows that later parts have, and that a store should send now.
    """

    rows: Rows
    boxes: NDArray[np.float32] | None
    ahead: Rows | None = None


class Fetcher:
    """Fetches batches of images of several sets: a batch is given as what to fetch from each set."""

    def __init__(self, sets: tuple[ImageSet, ...], resolution: int) -> None:
        self._sets, self._resolution = sets, resolution

    def decode(self, parts: tuple[Part, ...]) -> Tensor:
        """Pixels (B, 3, R, R) uint8 of all parts, on the CPU; the function of a worker."""
        self._fetch_ahead(parts)
        return torch.stack(
            [
                view
                for images, part in zip(self._sets, parts, strict=True)
                for view in images.views(part.rows, self._resolution, part.boxes)
            ]
        )

    def encode(self, parts: tuple[Part, ...]) -> Encoded:
        """All parts, with the bytes of the images that a GPU decodes; the function of a worker."""
        self._fetch_ahead(parts)
        images = [
            image
            for images, part in zip(self._sets, parts, strict=True)
            for image in images.encoded(part.rows, self._resolution, part.boxes)
        ]
        return Encoded.of(images, self._resolution)

    def _fetch_ahead(self, parts: tuple[Part, ...]) -> None:
        for images, part in zip(self._sets, parts, strict=True):
            if part.ahead is not None:
                images.fetch_ahead(part.ahead)

    def decode_on_gpu(self, parts: tuple[Part, ...], encoded: Encoded, device: torch.device) -> Tensor:
        """Pixels (B, 3, R, R) uint8 of all parts on a GPU, which decodes their files."""
        pairs = list(zip(self._sets, parts, strict=True))
        boxes = [box for part in parts for box in each_box(part.boxes, len(part.rows))]
        places = [(images, row) for images, part in pairs for row in part.rows]

        def on_cpu(at: int) -> Tensor:
            (images, row), box = places[at], boxes[at]
            return next(images.views(np.array([row]), self._resolution, None if box is None else box[None]))

        sizes = np.concatenate([images.view_sizes(part.rows) for images, part in pairs])
        return gpu_decoder(device).views(encoded, Windows(sizes, boxes, self._resolution), on_cpu)

    def fetch(self, parts: tuple[Part, ...]) -> Tensor:
        """Pixels (B, 3, R, R) uint8 of all parts, in the order of the sets, fetched in this process."""
        self._fetch_ahead(parts)
        views = [
            images.fetch(part.rows, self._resolution, part.boxes)
            for images, part in zip(self._sets, parts, strict=True)
        ]
        if len({view.device for view in views}) > 1:  # one set is on the GPU, the other is not
            views = upload(views, max(views, key=lambda view: view.is_cuda).device)
        return torch.cat(views) if len(views) > 1 else views[0]
