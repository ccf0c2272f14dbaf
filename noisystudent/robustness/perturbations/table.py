"""The constants of ImageNet-P, CIFAR-10-P, Tiny ImageNet-P and ImageNet-P-299, by side and name.

They are copied from make_imagenet_p.py, make_cifar_p.py, make_tinyimagenet_p.py and
make_imagenet_p_inception.py of github.com/hendrycks/robustness, at difficulty 1. The first number of each
perturbation is the number of frames. The others are the parameters of the function of the same name, in the
same order.
"""

from __future__ import annotations

_DRIP, _SHORT_DRIP = (0.05, 0.1, 0.15, 0.7), (0.2, 0.8)

_IMAGENET: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (31, 0.03),
    "shot_noise": (31, 300),
    "motion_blur": (31, 10, 3, 4),
    "zoom_blur": (31, 0.004),
    "snow": (31, 0.05, 0.3, 3, 0.5, 14, 4, 0.85),
    "brightness": (31, 0.02),
    "translate": (41, 20),
    "rotate": (31, 1),
    "tilt": (31, 1),
    "scale": (31, 0.4, 0.025),
    "speckle_noise": (31, 0.05),
    "gaussian_blur": (31, 0.25, 0.035, 6),
    "spatter": (31, 0.65, 0.27, 3.7, 0.69, *_DRIP),
    "shear": (31, 1),
}

_CIFAR: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (31, 0.02),
    "shot_noise": (31, 700),
    "motion_blur": (21, 6, 1.8, 9),
    "snow": (31, 0.05, 0.3, 2, 0.5, 10, 2, 0.85),
    "brightness": (31, 0.015),
    "translate": (16, 7),
    "tilt": (31, 0.75),
    "scale": (31, 0.7, 0.02),
    "gaussian_blur": (31, 0.3, 0.015, 7),
    "spatter": (31, 0.6, 0.265, 1.75, 0.7, *_SHORT_DRIP),
}

_TINY: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (31, 0.025),
    "shot_noise": (31, 500),
    "motion_blur": (31, 14, 3, 5),
    "snow": (31, 0.05, 0.28, 2, 0.5, 10, 2.5, 0.85),
    "translate": (31, 15),
    "gaussian_blur": (31, 0.35, 0.014, 7),
    "spatter": (31, 0.6, 0.25, 1.75, 0.7, *_SHORT_DRIP),
}

_INCEPTION: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (31, 0.035),
    "shot_noise": (31, 250),
    "motion_blur": (31, 13, 3, 4),
    "speckle_noise": (31, 0.06),
    "gaussian_blur": (31, 0.35, 0.035, 6),
    "spatter": (31, 0.65, 0.3, 4, 0.69, *_DRIP),
}

TABLE = {32: _IMAGENET | _CIFAR, 64: _IMAGENET | _TINY, 224: _IMAGENET, 299: _IMAGENET | _INCEPTION}
"""{side: {name: (number of frames, constants …)}}; what is equal to ImageNet's constants is not repeated."""
