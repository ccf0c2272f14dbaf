"""Odd image files: whole ones of every format and mode, broken ones, hostile ones, odd names."""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from inputs import LENIENT, Input
from PIL import Image

WIDTH, HEIGHT = 24, 20


def _pixels(mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(5)
    smooth = np.linspace(0, 200, WIDTH)[None, :, None] + rng.integers(0, 50, (HEIGHT, WIDTH, 3))
    return Image.fromarray(smooth.astype(np.uint8)).convert(mode)


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """Return the bytes of a small image of a format and a mode of Pillow."""
    buffer = io.BytesIO()
    _pixels(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def _frames(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), (value, 9, 0)) for value in (0, 120, 250)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _sixteen(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((9, 14), 40_000, np.uint16)).save(buffer, kind)
    return buffer.getvalue()


def _float_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0.0, np.nan], [np.inf, 3e38]], np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes, good: bool = True) -> bytes:
    """Return one chunk of a PNG."""
    check = zlib.crc32(kind + data) ^ (not good)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def png(width: int, height: int, rows: bytes, *more: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """Return a PNG whose header says what it is told."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


_ROWS = zlib.compress(b"\0" * (HEIGHT * (1 + 3 * WIDTH)))
_BOMB = zlib.compress(b"\0" * 20_000_000, 1)
_JPEG = encoded("JPEG", quality=90)
_PNG = encoded("PNG")


def _forged(data: bytes, share: float) -> bytes:
    """Cut a JPEG short and put an end marker there."""
    return data[: int(len(data) * share)] + b"\xff\xd9"


def _random(size: int) -> bytes:
    return random.Random(size).randbytes(size)


WHOLE = {
    "jpg": _JPEG,
    "png": _PNG,
    "gif": encoded("GIF"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
    "webp": encoded("WEBP"),
    "progressive.jpg": encoded("JPEG", progressive=True),
    "grey.jpg": encoded("JPEG", "L"),
    "cmyk.jpg": encoded("JPEG", "CMYK"),
    "quality-1.jpg": encoded("JPEG", quality=1),
    "444.jpg": encoded("JPEG", subsampling=0),
    "comment.jpg": encoded("JPEG", comment=b"\x1b[31m" * 50),
    "exif.jpg": encoded(
        "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    ),
    "one-bit.png": encoded("PNG", "1"),
    "grey.png": encoded("PNG", "L"),
    "grey-alpha.png": encoded("PNG", "LA"),
    "alpha.png": encoded("PNG", "RGBA"),
    "palette.png": encoded("PNG", "P"),
    "palette-transparent.png": encoded("PNG", "P", transparency=3),
    "sixteen.png": _sixteen("PNG"),
    "sixteen.tiff": _sixteen("TIFF"),
    "float.tiff": _float_tiff(),
    "frames.gif": _frames("GIF"),
    "frames.webp": _frames("WEBP"),
    "frames.png": _frames("PNG"),
    "pages.tiff": _frames("TIFF"),
    "lossless.webp": encoded("WEBP", lossless=True),
    "lzw.tiff": encoded("TIFF", compression="tiff_lzw"),
    "long-text.png": png(WIDTH, HEIGHT, _ROWS, chunk(b"tEXt", b"a\0" + b"b" * 100_000)),
    "after-end.png": _PNG + b"more" * 100,
    "after-end.jpg": _JPEG + _random(500),
    "thin.png": png(1, 5000, zlib.compress(b"\0" * 20_000)),
}
"""Files that can be decoded."""

BROKEN = {
    "empty.jpg": b"",
    "empty.png": b"",
    "text.jpg": b"no image\n",
    "html.jpg": b"<html><body>404</body></html>",
    "svg.png": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n%%EOF\n",
    "pdf.jpg": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
    "zeros.png": bytes(4096),
    "random.png": _random(3000),
    "random.jpg": _JPEG[:2] + _random(3000),
    "half.jpg": _JPEG[: len(_JPEG) // 2],
    "half.png": _PNG[: len(_PNG) // 2],
    "half.gif": WHOLE["gif"][:60],
    "half.webp": WHOLE["webp"][: len(WHOLE["webp"]) // 2],
    "half.tiff": WHOLE["tiff"][:40],
    "half.bmp": WHOLE["bmp"][:60],
    "no-end.jpg": _JPEG[:-2],
    "forged-30.jpg": _forged(_JPEG, 0.3),
    "forged-60.jpg": _forged(_JPEG, 0.6),
    "forged-90.jpg": _forged(_JPEG, 0.9),
    "forged-progressive.jpg": _forged(WHOLE["progressive.jpg"], 0.6),
    "forged-grey.jpg": _forged(WHOLE["grey.jpg"], 0.7),
    "forged-cmyk.jpg": _forged(WHOLE["cmyk.jpg"], 0.7),
    "header-only.jpg": _JPEG[:20],
    "signature.png": _PNG[:8],
    "no-data.png": _PNG[:33] + chunk(b"IEND", b""),
    "check-sum.png": _PNG[:29] + bytes([_PNG[29] ^ 1]) + _PNG[30:],
    "zero-width.png": png(0, 5, _ROWS),
    "bomb.png": png(40_000, 40_000, zlib.compress(b"\0" * 1000)),
    "bomb-2-31.png": png(2**31 - 1, 2**31 - 1, _ROWS),
    "bomb-text.png": png(WIDTH, HEIGHT, _ROWS, chunk(b"zTXt", b"a\0\0" + _BOMB)),
    "bomb-profile.png": png(WIDTH, HEIGHT, _ROWS, chunk(b"iCCP", b"a\0\0" + _BOMB)),
    "bomb-rows.png": png(WIDTH, HEIGHT, _BOMB),
    "bomb.gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + WHOLE["gif"][10:],
    "bomb.bmp": WHOLE["bmp"][:18] + struct.pack("<ii", 100_000, 100_000) + WHOLE["bmp"][26:],
    "negative.bmp": WHOLE["bmp"][:18] + struct.pack("<ii", -5, -(2**31)) + WHOLE["bmp"][26:],
    "loop.tiff": b"II*\0\x08\0\0\0" + b"\0\0" + struct.pack("<I", 8),
    "many-tags.tiff": b"II*\0\x08\0\0\0" + b"\xff\xff" + _random(3000),
    "xpm.png": b'/* XPM */\nstatic char *a[] = {"9999999 9999999 1 1",' + b'"a",' * 9,
    "ppm.png": b"P6 99999999 99999999 255\n",
    "tar.png": bytes(257) + b"ustar\0" + bytes(400),
}
"""Files of which no pixel may be used, or whose missing part would be grey."""

EITHER = {"bomb-text.png", "bomb-profile.png", "bomb-rows.png", "no-end.jpg", "check-sum.png", "negative.bmp"}
"""Names in BROKEN of files that some decoders can read to the end."""


# --- what is no regular file, and odd names ---


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(_PNG[:33])
        file.truncate(3 << 30)


def _denied(path: Path) -> None:
    path.write_bytes(_PNG)
    path.chmod(0)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "inner.png").write_bytes(_PNG)


SPECIAL: dict[str, tuple[Callable[[Path], object], bool]] = {
    "dev-zero.png": (lambda path: path.symlink_to("/dev/zero"), True),
    "dev-null.png": (lambda path: path.symlink_to("/dev/null"), True),
    "dev-random.jpg": (lambda path: path.symlink_to("/dev/urandom"), True),
    "proc.png": (lambda path: path.symlink_to("/proc/self/environ"), True),
    "nowhere.png": (lambda path: path.symlink_to("nowhere"), True),
    "itself.png": (lambda path: path.symlink_to(path.name), True),
    "fifo.png": (os.mkfifo, True),
    "socket.png": (_socket, True),
    "sparse.png": (_sparse, True),
    "link.png": (lambda path: path.symlink_to("../val/one/000.png"), False),
    "denied.png": (_denied, False),
    "folder.png": (_folder, False),
}
"""Name to (what makes it, whether it must be named as unreadable)."""

NAMES: tuple[str | bytes, ...] = (
    " ", "-rf.png", "--out.png", "a b.png", "a'b\".png", "$(touch x).png", "`id`.png", "a;b|c&d.png",
    "%s%n.png", "{0}.png", "[red]x[/red].png", "<script>.png", "a\nb.png", "a\tb.png", "a\rb.png",
    "\x1b[31mred.png", "\x1b]0;title\x07.png", "\x7f.png", "\x9b31m.png", "\u202egnp.png", "\ufeff.png",
    "é.png", "e\u0301.png", "日本.png", "🙂.png", ".hidden.png", "..png", "a" * 251 + ".png", "UPPER.PNG",
    "x.JPeG", "no-suffix", "a.png.", "a,b.png", "=1+1.png", "~.png", "*.png", b"\xff\xfe.png",
    b"latin-\xe9.png", "NUL.png", "a\\b.png", "#.png", "\u2028.png",
)  # fmt: skip


def _both(name: str, make: Callable[[Path], object], bad: str, refused: bool | None) -> list[Input]:
    check = ("check", "--labeled", "{user}/labeled", "--unlabeled", "{user}/pool", "--out", "{out}", *LENIENT)
    predict = ("predict", "{run}", "{user}/pool", "--out", "{out}.csv", "--device", "cpu")
    return [
        Input(f"scan {name}", check, make, refused=refused, bad=bad),
        Input(f"predict {name}", predict, make, refused=refused, bad=bad),
    ]


def _write(name: str | bytes, data: bytes, user: Path) -> None:
    path = os.path.join(os.fsencode(user / "pool"), name if isinstance(name, bytes) else os.fsencode(name))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def inputs() -> list[Input]:
    """Return every image, scanned as a part of the pool and predicted by a finished run."""
    made: list[Input] = []
    for name, data in WHOLE.items():
        made += _both(f"whole {name}", partial(_write, f"odd-{name}", data), "", False)
    for name, data in BROKEN.items():
        bad = "" if name in EITHER else f"odd-{name}"
        made += _both(f"broken {name}", partial(_write, f"odd-{name}", data), bad, False)
    for name, (make, unreadable) in SPECIAL.items():
        write = lambda user, make=make, name=name: make(user / "pool" / f"odd-{name}")  # noqa: E731
        made += _both(f"special {name}", write, f"odd-{name}" if unreadable else "", False)
    for number, odd in enumerate(NAMES):
        # Names are bytes for the system; the id of a test is ASCII.
        label = f"name {number:02d} {odd!a}"[:48]
        made += _both(label, partial(_write, odd, _PNG), "", False)
    return made
