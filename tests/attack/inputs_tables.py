"""Odd Parquet files: labels and images of every type, broken footers, hostile metadata."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from inputs import Input
from inputs_sets import CLASSES, IMAGES, Data, scanned


def _parquet(columns: dict[str, Any] | pa.Table, **metadata: object) -> bytes:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if metadata:
        table = table.replace_schema_metadata(
            {name: json.dumps(one) if not isinstance(one, str) else one for name, one in metadata.items()}
        )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _labels(values: Any) -> bytes:
    return _parquet({"image": IMAGES, "label": values})


def _feature(names: object) -> dict[str, object]:
    return {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}


_GOOD = _labels(CLASSES)
_INTS = {"image": IMAGES, "label": [0, 1, 2, 0, 1, 2]}
_STRUCTS = [{"bytes": one, "path": f"{n}.png"} for n, one in enumerate(IMAGES)]
PARQUETS: dict[str, tuple[Data, bool | None]] = {
    "whole": (_GOOD, False),
    "structs": (_parquet({"image": _STRUCTS, "label": CLASSES}), False),
    "whole numbers": (_parquet(_INTS), None),
    "class names": (_parquet(_INTS, huggingface=_feature(["one", "seven", "six"])), False),
    "class names too few": (_parquet(_INTS, huggingface=_feature(["one"])), True),
    "class names no list": (_parquet(_INTS, huggingface=_feature(7)), None),
    "class names numbers": (_parquet(_INTS, huggingface=_feature([1, 2, 3])), None),
    "class names twice": (_parquet(_INTS, huggingface=_feature(["one", "one", "six"])), True),
    "metadata no JSON": (_parquet(_INTS, huggingface="{"), None),
    "metadata deep": (_parquet(_INTS, huggingface="[" * 5000), None),
    "label -2": (_labels([0, -2, 1, 0, 1, 2]), True),
    "label -1": (_labels([0, -1, 1, 0, 1, 2]), None),
    "label NaN": (_labels([0.0, float("nan"), 1.0, 0.0, 1.0, 2.0]), True),
    "label float": (_labels([0.5, 1.5, 2.5, 0.5, 1.5, 2.5]), True),
    "label infinite": (_labels([0.0, float("inf"), 1.0, 0.0, 1.0, 2.0]), True),
    "label lists": (_labels([[0], [1], [2]] * 2), True),
    "label structs": (_labels([{"a": 1}] * 6), True),
    "label null": (_labels(["one", None, "six", "one", "seven", "six"]), None),
    "label all null": (_labels(pa.array([None] * 6, pa.string())), True),
    "label null type": (_labels(pa.nulls(6)), True),
    "label empty": (_labels(["one", "", "six", "one", "seven", "six"]), True),
    "label bytes": (_labels([one.encode() for one in CLASSES]), None),
    "label no UTF-8": (_labels([b"\xff"] * 3 + [b"\xfe"] * 3), None),
    "label true": (_labels([True, False] * 3), None),
    "label times": (_labels(pa.array([1, 2, 3] * 2, pa.timestamp("s"))), True),
    "label big": (_labels(pa.array([2**63] * 3 + [1] * 3, pa.uint64())), None),
    "label dictionary": (_labels(pa.array(CLASSES).dictionary_encode()), None),
    "label escape": (_labels(["\x1b[31m", "seven", "six"] * 2), None),
    "label slash": (_labels(["../a", "seven", "six"] * 2), None),
    "no label": (_parquet({"image": IMAGES}), True),
    "no image": (_parquet({"label": CLASSES}), True),
    "image ints": (_parquet({"image": [1] * 6, "label": CLASSES}), True),
    "image floats": (_parquet({"image": [[0.5] * 9] * 6, "label": CLASSES}), True),
    "image text": (_parquet({"image": ["text"] * 6, "label": CLASSES}), None),
    "image null": (_parquet({"image": [None, *IMAGES[1:]], "label": CLASSES}), None),
    "image all null": (_parquet({"image": pa.nulls(6, pa.binary()), "label": CLASSES}), None),
    "image empty": (_parquet({"image": [b""] * 6, "label": CLASSES}), None),
    "image large": (_parquet({"image": pa.array(IMAGES, pa.large_binary()), "label": CLASSES}), None),
    "struct no bytes": (_parquet({"image": [{"path": "/etc/passwd"}] * 6, "label": CLASSES}), True),
    "struct null bytes": (
        _parquet(
            {
                "image": pa.array(
                    [{"bytes": None, "path": "/etc/passwd"}] * 6,
                    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
                ),
                "label": CLASSES,
            }
        ),
        None,
    ),
    "struct ints": (_parquet({"image": [{"bytes": 5}] * 6, "label": CLASSES}), True),
    "two columns of one name": (
        _parquet(
            pa.Table.from_arrays(
                [pa.array(IMAGES), pa.array(IMAGES), pa.array(CLASSES)], ["image", "image", "label"]
            )
        ),
        True,
    ),
    "two labels": (
        _parquet(
            pa.Table.from_arrays(
                [pa.array(IMAGES), pa.array(CLASSES), pa.array(CLASSES)], ["image", "label", "label"]
            )
        ),
        True,
    ),
    "no rows": (_parquet({"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())}), True),
    "no columns": (_parquet(pa.table({})), True),
    "empty file": (b"", True),
    "magic only": (b"PAR1PAR1", True),
    "half": (_GOOD[: len(_GOOD) // 2], True),
    "footer garbage": (_GOOD[:-100] + b"\xff" * 92 + _GOOD[-8:], True),
    "footer of 4 GB": (_GOOD[:-8] + b"\xff\xff\xff\xff" + b"PAR1", True),
    "data garbage": (_GOOD[:50] + b"\xff" * 200 + _GOOD[250:], None),
    "encrypted magic": (_GOOD[:-4] + b"PARE", True),
    "text": (b"image,label\n1,2\n", True),
}


def inputs() -> list[Input]:
    """Return every file as labelled images and as the pool."""
    return scanned("parquet", PARQUETS)
