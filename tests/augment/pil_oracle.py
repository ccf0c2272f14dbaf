"""Reference for `noisystudent.augment.ops`: the 16 operations of RandAugment in plain Pillow code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from noisystudent.augment.policies import Op

GREY = (128, 128, 128)


def pil_operation(
    pixels: NDArray[np.uint8], op: int, argument: float, centre: tuple[int, int]
) -> NDArray[np.uint8]:
    """Apply one operation, with an argument of `policies.arguments`: (S, S, 3) uint8 -> the same shape."""
    return np.asarray(_pillow(Image.fromarray(pixels), op, float(argument), centre))


def _affine(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.NEAREST, fillcolor=GREY
    )


def _pillow(image: Image.Image, op: int, argument: float, centre: tuple[int, int]) -> Image.Image:  # noqa: C901
    match op:
        case Op.AUTO_CONTRAST:
            return ImageOps.autocontrast(image)
        case Op.EQUALIZE:
            return ImageOps.equalize(image)
        case Op.INVERT:
            return ImageOps.invert(image)
        case Op.ROTATE:
            return image.rotate(argument, Image.Resampling.NEAREST, fillcolor=GREY)
        case Op.POSTERIZE:
            return ImageOps.posterize(image, int(argument))
        case Op.SOLARIZE:
            return ImageOps.solarize(image, int(argument))
        case Op.SOLARIZE_ADD:
            return image.point([min(255, v + int(argument)) if v < 128 else v for v in range(256)] * 3)
        case Op.COLOR:
            return ImageEnhance.Color(image).enhance(argument)
        case Op.CONTRAST:
            return ImageEnhance.Contrast(image).enhance(argument)
        case Op.BRIGHTNESS:
            return ImageEnhance.Brightness(image).enhance(argument)
        case Op.SHARPNESS:
            return ImageEnhance.Sharpness(image).enhance(argument)
        case Op.SHEAR_X:
            return _affine(image, (1, argument, 0, 0, 1, 0))
        case Op.SHEAR_Y:
            return _affine(image, (1, 0, 0, argument, 1, 0))
        case Op.TRANSLATE_X:
            return _affine(image, (1, 0, argument, 0, 1, 0))
        case Op.TRANSLATE_Y:
            return _affine(image, (1, 0, 0, 0, 1, argument))
        case Op.CUTOUT:
            (row, column), half = centre, int(argument)
            if half > 0:
                corners = (column - half, row - half, column + half - 1, row + half - 1)
                ImageDraw.Draw(image).rectangle(corners, fill=GREY)
            return image
    return image
