"""Highlights on drops of water: the only corruption code that needs OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


def shine(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Brightness (S, S) in 0 … 1 of a layer of water (S, S): its edges, embossed; 0 if there are no edges.

    The steps and their constants are those of the published code.
    """
    distance = cv2.distanceTransform(255 - cv2.Canny(levels, 50, 150), cv2.DIST_L2, 5)  # to the nearest edge
    near = cv2.blur(np.minimum(distance, 20), (3, 3)).astype(np.uint8)
    relief = cv2.filter2D(cv2.equalizeHist(near), cv2.CV_8U, _EMBOSS)
    bright = levels * cv2.blur(relief, (3, 3)).astype(np.float32)
    return np.asarray(bright / np.float32(max(bright.max(), 1)), dtype=np.float32)
