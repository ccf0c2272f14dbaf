"""The file of an index is whole, or its name is in the error."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pyarrow as pa
import pytest

from noisystudent.data.index import Index, writer
from noisystudent.errors import RunError

SCHEMA = pa.schema([("id", pa.string())])
BATCH = pa.RecordBatch.from_arrays([pa.array([f"{number:09d}" for number in range(99)])], schema=SCHEMA)


def write(path: Path) -> None:
    with writer(path, SCHEMA) as append:
        append(BATCH)


def test_a_disk_that_is_full_at_any_byte_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    write(whole := tmp_path / "whole.arrow")
    assert len(Index(whole)) == 99
    part = tmp_path / "part.arrow"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in range(whole.stat().st_size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(RunError, match=rf"^cannot write {re.escape(str(part))}: .*File too large"):
                write(part)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_place_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^cannot write .*nowhere/index\.arrow: "):
        write(tmp_path / "nowhere" / "index.arrow")


def test_an_error_of_the_block_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="an image"), writer(tmp_path / "a.arrow", SCHEMA):
        raise FileNotFoundError("an image is gone")
