"""Odd .npz files: labels and images of every type and shape, broken archives, hostile headers."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from inputs import Input
from inputs_sets import CLASSES, Data, scanned


def _npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _zipped(compress: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def _header(shape: str, kind: str = "|u1", order: str = "False") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _bomb() -> bytes:
    return _zipped(zipfile.ZIP_DEFLATED, images=_header("(200000, 32, 32, 3)") + bytes(200_000 * 3072))


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
NUMBERS = np.array([0, 1, 2, 0, 1, 2])
_WHOLE_NPZ = _npz(images=PIXELS, labels=NUMBERS)
_LABELS_NPY = _npz(labels=NUMBERS)
NPZS: dict[str, tuple[Data, bool | None]] = {
    "whole": (_WHOLE_NPZ, False),
    "names": (_npz(images=PIXELS, labels=np.array(CLASSES)), False),
    "one-hot": (_npz(images=PIXELS, labels=np.eye(3)[NUMBERS]), True),
    "one-hot ints": (_npz(images=PIXELS, labels=np.eye(3, dtype=int)[NUMBERS]), True),
    "float labels": (_npz(images=PIXELS, labels=NUMBERS + 0.5), True),
    "NaN labels": (_npz(images=PIXELS, labels=np.full(6, np.nan)), True),
    "negative labels": (_npz(images=PIXELS, labels=NUMBERS - 2), True),
    "column of labels": (_npz(images=PIXELS, labels=NUMBERS[:, None]), True),
    "bool labels": (_npz(images=PIXELS, labels=NUMBERS > 0), None),
    "complex labels": (_npz(images=PIXELS, labels=NUMBERS * 1j), True),
    "times as labels": (_npz(images=PIXELS, labels=NUMBERS.astype("datetime64[s]")), True),
    "byte names": (_npz(images=PIXELS, labels=np.array(CLASSES, "S")), None),
    "fewer labels": (_npz(images=PIXELS, labels=NUMBERS[:5]), True),
    "more labels": (_npz(images=PIXELS, labels=np.arange(7)), True),
    "no labels": (_npz(images=PIXELS), True),
    "no images": (_npz(labels=NUMBERS), True),
    "objects": (_npz(images=PIXELS, labels=np.array([{}] * 6, object)), True),
    "object images": (_npz(images=np.array([PIXELS[0]] * 6 + [None], object)[:6], labels=NUMBERS), True),
    "float images": (_npz(images=PIXELS / 255, labels=NUMBERS), True),
    "grey images": (_npz(images=PIXELS[..., 0], labels=NUMBERS), None),
    "channels first": (_npz(images=PIXELS.transpose(0, 3, 1, 2), labels=NUMBERS), True),
    "two channels": (_npz(images=PIXELS[..., :2], labels=NUMBERS), True),
    "five dimensions": (_npz(images=PIXELS[None], labels=NUMBERS), True),
    "one number": (_npz(images=np.uint8(3), labels=NUMBERS), True),
    "no images in it": (_npz(images=PIXELS[:0], labels=NUMBERS[:0]), True),
    "sides of 0": (_npz(images=PIXELS[:, :0], labels=NUMBERS), True),
    "Fortran order": (_npz(images=np.asfortranarray(PIXELS), labels=NUMBERS), None),
    "sixteen bits": (_npz(images=PIXELS.astype(np.uint16), labels=NUMBERS), None),
    "10^12 images": (
        _zipped(images=_header("(1000000000000, 16, 16, 3)"), labels=_header("(6,)", "<i8")),
        True,
    ),
    "overflowing shape": (_zipped(images=_header("(9223372036854775807, 16, 16, 3)")), True),
    "negative shape": (_zipped(images=_header("(-6, 16, 16, 3)") + bytes(5000)), True),
    "shape no tuple": (_zipped(images=_header("__import__('os').abort()") + bytes(99)), True),
    "header of 60 kB": (_zipped(images=b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65_535), True),
    "bomb": (_bomb, True),
    "half": (_WHOLE_NPZ[: len(_WHOLE_NPZ) // 2], True),
    "empty file": (b"", True),
    "text": (b"no zip", True),
    "bit flipped": (_WHOLE_NPZ[:3000] + bytes([_WHOLE_NPZ[3000] ^ 8]) + _WHOLE_NPZ[3001:], True),
}


def inputs() -> list[Input]:
    """Return every file as labelled images and as the pool."""
    return scanned("npz", NPZS)
