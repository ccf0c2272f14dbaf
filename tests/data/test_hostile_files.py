"""Files that are no files, that are endless or far too large, and links that multiply: read within bounds."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from image_files import labeled_folder, prepared, random_images, write_folder

from noisystudent.config import DataConfig
from noisystudent.data.sources import Source, base, open_source
from noisystudent.data.sources.files import ImageFiles
from noisystudent.data.sources.folder import FolderSource
from noisystudent.errors import InputError


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)
    os.chdir(here)


def link_to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 * 2**30)  # without a block on the disk


HOSTILE = {
    make_fifo: "cannot be read: not a regular file",
    make_socket: "cannot be read: not a regular file",
    link_to_zero: "cannot be read: not a regular file",
    make_large: f"cannot be read: 3,221,225,472 bytes; an image file may have {2**30:,}",
}


@pytest.mark.parametrize(("make", "reason"), HOSTILE.items())
def test_a_hostile_file_of_a_pool_is_in_the_ledger_and_the_rest_is_used(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    pool = write_folder(tmp_path / "pool", random_images(6, seed=5), lambda n: f"x/{n}.png")
    make(pool / "x" / "bad.png")
    labeled = labeled_folder(tmp_path / "labeled", 12)
    config = DataConfig(
        labeled=(str(labeled),), unlabeled=(str(pool),), resolution=8, workers=0, max_bad_fraction=0.5
    )
    assert len(prepared(config, tmp_path / "data").pool) == 6
    rows = list(csv.DictReader((tmp_path / "data" / "ledger.csv").read_text().splitlines()))
    assert [(row["id"], row["reason"]) for row in rows] == [("x/bad.png", reason)]


@pytest.mark.parametrize("make", HOSTILE)
def test_a_hostile_file_that_replaces_an_image_cannot_be_read(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    write_folder(tmp_path, random_images(1), lambda n: "x/0.png")
    sources: tuple[Source, ...] = (
        FolderSource(tmp_path, labeled=False),
        ImageFiles([tmp_path / "x" / "0.png"]),
    )
    (tmp_path / "x" / "0.png").unlink()
    make(tmp_path / "x" / "0.png")
    for source, name in zip(sources, ("x/0.png", str(tmp_path / "x" / "0.png")), strict=True):
        with pytest.raises(OSError, match=r"not a regular file|an image file may have"):
            source.read(0, 0, -1, name)


def test_a_member_of_a_shard_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tarfile = pytest.importorskip("tarfile")
    write_folder(tmp_path, random_images(1), lambda n: "x/0.png")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "x" / "0.png", "x/0.png")
    source = open_source([tmp_path / "a.tar"], labeled=False)
    (item,) = source.items()
    place = (item.shard, item.offset, item.size, item.id)
    assert source.read(*place) == (tmp_path / "x" / "0.png").read_bytes()
    monkeypatch.setattr(base, "LARGEST_IMAGE", item.size - 1)
    with pytest.raises(OSError, match="an image file may have"):
        source.read(*place)


@pytest.mark.parametrize("make", [make_fifo, make_socket, link_to_zero])
def test_a_file_named_in_a_call_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: not a regular file"):
        ImageFiles([tmp_path / "a.png"])


def diamonds(root: Path, levels: int) -> Iterator[str]:
    """Two links on each level lead to the next one, so 2 ** levels paths lead to the one image."""
    for level in range(levels + 1):
        (root / "real" / f"{level:02d}").mkdir(parents=True)
    for level in range(levels):
        for name in ("a", "b"):
            (root / "real" / f"{level:02d}" / name).symlink_to(f"../{level + 1:02d}")
    write_folder(root / "real" / f"{levels:02d}", random_images(1), lambda n: "z.png")
    yield from (item.id for item in FolderSource(root / "real" / "00", labeled=False).items())


def test_links_may_lead_to_a_folder_in_several_ways(tmp_path: Path) -> None:
    assert list(diamonds(tmp_path, 2)) == ["a/a/z.png", "a/b/z.png", "b/a/z.png", "b/b/z.png"]


def test_links_that_multiply_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^[^\n]*more than 100 paths of symbolic links lead to this folder"):
        list(diamonds(tmp_path, 30))


def test_a_folder_may_be_nested_deeper_than_python_may_recurse(tmp_path: Path) -> None:
    here, depth = os.getcwd(), 1200
    os.chdir(tmp_path)
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    write_folder(Path("e"), random_images(1), lambda n: "z.png")
    os.chdir(here)
    try:
        (item,) = FolderSource(tmp_path, labeled=False).items()
    finally:
        subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)  # shutil.rmtree cannot
    assert item.id == "d/" * depth + "e/z.png"
