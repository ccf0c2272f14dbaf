"""The view that an exported graph makes of raw images is the clean view of `predict`."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisystudent.data.decode import DecodedImage, view, window
from noisystudent.inference.graph import CleanView


@settings(max_examples=40, deadline=None)
@given(
    side=st.sampled_from([8, 32, 224, 240]),
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_the_view_of_the_graph_is_the_clean_view(side: int, height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = CleanView(side)(torch.from_numpy(pixels)[None])[0]
    expected = view(DecodedImage(pixels, (height, width)), side).float()
    different = (found - expected).abs()
    assert different.max() <= 2 and (different > 0).float().mean() < 0.05
    if height == width == side:
        assert torch.equal(found, expected)


@given(side=st.integers(1, 1024), height=st.integers(1, 8000), width=st.integers(1, 8000))
def test_its_window_is_the_window_of_the_clean_view(side: int, height: int, width: int) -> None:
    found = CleanView(side)._window(*torch.tensor([height, width], dtype=torch.float64))
    assert int(found) == window((height, width), side, None)[2]
