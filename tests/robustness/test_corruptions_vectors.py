"""Test vectors: what the official code makes of a ramp, within one grey level."""

from __future__ import annotations

import numpy as np
import pytest
from corruption_reference import ramp

from noisystudent.robustness.corruptions import corrupt

V16 = """
 32 contrast 1: 126.5938 126.5938 128.8125, 74 62 117, 99 154 93
 32 contrast 3: 126.625 126.625 128.7002, 99 92 123, 112 141 109
 32 contrast 5: 126.5 126.5 128.7666, 116 114 126, 121 132 122
 32 brightness 1: 134.0049 133.8662 136.6934, 63 45 126, 96 176 87
 32 brightness 3: 146.0488 145.7051 149.7998, 76 54 152, 110 202 99
 32 brightness 5: 157.9199 157.167 162.6553, 95 68 190, 131 240 118
 32 saturate 1: 171.4443 171.4629 172.1357, 96 92 114, 141 164 139
 32 saturate 3: 108.1787 108.9746 112.4111, 28 4 114, 52 164 39
 32 saturate 5: 97.6514 98.4551 101.5186, 24 0 114, 17 164 0
 32 gaussian_blur 1: 126.5938 126.5938 128.8926, 57 40 113, 90 163 81
 32 gaussian_blur 3: 126.5938 126.5938 128.9141, 57 40 114, 90 164 81
 32 gaussian_blur 5: 126.5625 126.5625 128.7705, 57 40 114, 90 164 81
 32 defocus_blur 1: 126.8125 126.8125 129.1641, 57 40 114, 90 164 81
 32 defocus_blur 3: 126.8125 126.8125 129.2881, 57 40 114, 90 164 81
 32 defocus_blur 5: 126.8125 126.8125 129.457, 57 40 114, 90 164 81
 32 zoom_blur 1: 123.0312 123.0312 129.1055, 55 39 110, 87 159 71
 32 zoom_blur 3: 122.9688 122.9688 130.207, 58 43 118, 88 158 70
 32 zoom_blur 5: 122.8125 122.8125 131.0039, 60 46 125, 90 156 69
 32 pixelate 1: 127.0312 127.0312 129.375, 61 41 118, 90 164 81
 32 pixelate 3: 127.0312 127.0312 129.5625, 57 41 114, 90 164 81
 32 pixelate 5: 127.125 127.125 130.0, 53 41 111, 94 160 79
224 contrast 1: 126.6027 126.6027 126.9796, 79 78 122, 81 85 108
224 contrast 3: 126.5982 126.5982 126.8882, 103 102 124, 104 106 118
224 contrast 5: 126.5134 126.5134 126.9506, 121 120 126, 121 121 125
224 brightness 1: 141.0979 141.0989 141.5811, 9 6 139, 15 28 106
224 brightness 3: 158.7772 158.7792 159.3178, 13 8 190, 23 42 157
224 brightness 5: 166.3539 166.3557 166.9307, 16 10 241, 30 56 208
224 saturate 1: 171.6022 171.6029 171.7354, 82 81 114, 60 63 81
224 saturate 3: 103.0982 103.0962 103.658, 3 0 114, 0 11 81
224 saturate 5: 95.2475 95.2569 95.8195, 3 0 114, 0 11 81
224 gaussian_blur 1: 126.5848 126.5804 127.0975, 7 5 114, 12 22 81
224 gaussian_blur 3: 126.5714 126.5714 126.9456, 7 5 114, 12 22 89
224 gaussian_blur 5: 126.5804 126.5759 126.9235, 8 6 111, 12 22 120
224 defocus_blur 1: 126.4375 126.4375 126.6241, 7 5 113, 12 22 80
224 defocus_blur 3: 126.4375 126.4375 126.8751, 7 5 114, 12 22 84
224 defocus_blur 5: 127.8705 127.8705 128.3189, 7 6 125, 12 22 125
224 zoom_blur 1: 126.2009 126.2009 126.9381, 13 10 135, 17 27 142
224 zoom_blur 3: 126.1696 126.1696 126.9791, 17 14 134, 21 30 117
224 zoom_blur 5: 126.058 126.058 126.9896, 20 18 121, 24 33 137
224 pixelate 1: 127.3393 127.3393 128.2526, 8 6 121, 12 23 85
224 pixelate 3: 127.1607 127.1607 127.8209, 6 6 120, 12 24 94
224 pixelate 5: 127.2857 127.2857 128.449, 6 6 111, 11 24 91
"""
"""Side, corruption, severity: channel means, pixel at row 5 and column 7, pixel at row 20 and column 11."""


@pytest.mark.parametrize("line", V16.strip().splitlines())
def test_v16_deterministic_corruptions_are_the_official_ones(line: str) -> None:
    cell, numbers = line.split(":")
    side, name, severity = cell.split()
    means, early, late = ([float(number) for number in part.split()] for part in numbers.split(","))
    found = corrupt(ramp(int(side)), name, int(severity), seed=0, rows=np.arange(1))[0].double()
    assert found.mean((1, 2)).tolist() == pytest.approx(means, abs=1)
    assert found[:, 5, 7].tolist() == pytest.approx(early, abs=1)
    assert found[:, 20, 11].tolist() == pytest.approx(late, abs=1)
