"""Odd tar shards: whole, broken and hostile."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from typing import Any

from inputs import Input
from inputs_images import WHOLE
from inputs_sets import CLASSES, IMAGES, Data, scanned

PNG, JPEG = WHOLE["png"], WHOLE["jpg"]


def _member(name: str, data: bytes = PNG, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, data


def _tar(*members: tuple[tarfile.TarInfo, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


GOOD = [
    _member(f"{label}/{number}.img.png", data)
    for number, (label, data) in enumerate(zip(CLASSES, IMAGES, strict=True))
]
_WHOLE = _tar(*GOOD)


def _sized(size: bytes) -> bytes:
    """Return a tar whose first header has another size field of 12 bytes, with a right check sum."""
    header = bytearray(_WHOLE[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + _WHOLE[512:]


def _pax(**headers: str) -> bytes:
    return _tar(_member("one/0.png", pax_headers=headers), *GOOD)


def _many() -> bytes:
    return _tar(*(_member(f"one/{number}.txt", b"") for number in range(20_000)), *GOOD)


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("one/0.png", PNG)
    return buffer.getvalue()


_LINK = {"size": 0, "type": tarfile.SYMTYPE}
TARS: dict[str, tuple[Data, bool | None]] = {
    "whole": (_WHOLE, False),
    "gnu": (_tar(*GOOD, kind=tarfile.GNU_FORMAT), False),
    "ustar": (_tar(*GOOD, kind=tarfile.USTAR_FORMAT), False),
    "empty file": (b"", True),
    "no members": (_tar(), True),
    "only zeros": (bytes(10_240), True),
    "text": (b"no tar\n" * 200, True),
    "zip": (_zip(), True),
    "gzip": (gzip.compress(_WHOLE), None),
    "gzip bomb": (lambda: gzip.compress(bytes(200_000_000)), True),
    "half": (_WHOLE[: len(_WHOLE) // 2], None),
    "no end": (_WHOLE[: len(_tar(GOOD[0])) - 9_000], None),
    "header cut": (_WHOLE[:300], True),
    "bit in header": (_WHOLE[:100] + b"\xff" + _WHOLE[101:], True),
    "parent name": (_tar(_member("../../escaped.png"), *GOOD), None),
    "absolute name": (_tar(_member("/etc/escaped.png"), *GOOD), None),
    "same name twice": (_tar(_member("one/0.png"), _member("one/0.png", JPEG), *GOOD), None),
    "symlink": (_tar(_member("one/a.png", b"", linkname="/etc/passwd", **_LINK), *GOOD), None),
    "hard link": (
        _tar(*GOOD, _member("one/a.png", b"", linkname=GOOD[0][0].name, size=0, type=tarfile.LNKTYPE)),
        None,
    ),
    "link to itself": (_tar(_member("one/a.png", b"", linkname="one/a.png", **_LINK), *GOOD), None),
    "device": (
        _tar(_member("one/a.png", b"", size=0, type=tarfile.CHRTYPE, devmajor=1, devminor=5), *GOOD),
        None,
    ),
    "fifo": (_tar(_member("one/a.png", b"", size=0, type=tarfile.FIFOTYPE), *GOOD), None),
    "unknown type": (_tar(_member("one/a.png", type=b"Z"), *GOOD), None),
    "size of 10^18": (_sized(b"\x80" + b"\0" * 3 + (10**18).to_bytes(8, "big")), None),
    "negative size": (_sized(b"\xff" * 12), None),
    "size no number": (_sized(b"zzzzzzzzzzz\0"), None),
    "pax size absurd": (_pax(size="9" * 30), None),
    "pax size negative": (_pax(size="-1"), None),
    "pax size no number": (_pax(size="many"), None),
    "pax name 1 MB": (_pax(path="a" * 1_000_000 + "/0.png"), None),
    "pax name empty": (_pax(path=""), None),
    "pax name NUL": (_pax(path="a\0b.png"), None),
    "pax sparse": (
        _pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 18}),
        None,
    ),
    "pax sparse map": (_pax(**{"GNU.sparse.map": "0,9999999999999,1", "GNU.sparse.size": "9" * 14}), None),
    "pax mtime": (_pax(mtime="nan"), None),
    "escape in names": (_tar(_member("\x1b[31m/\x1b]0;x\x07.png"), *GOOD), None),
    "name no UTF-8": (_tar(_member(b"\xff\xfe/0.png".decode(errors="surrogateescape")), *GOOD), None),
    "deep name": (_tar(_member("d/" * 1500 + "0.png"), *GOOD), None),
    "no images": (_tar(_member("a.txt", b"text")), True),
    "empty images": (_tar(_member("one/0.png", b""), *GOOD), None),
    "20,000 members": (_many, False),
    "tar in tar": (_tar(_member("inner.tar", _WHOLE), *GOOD), False),
}


def inputs() -> list[Input]:
    """Return every tar as labelled images and as the pool."""
    return scanned("tar", TARS)
