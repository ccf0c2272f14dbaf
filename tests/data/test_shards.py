"""Tar and Parquet shards have the same items as the folder that they were made of, up to any damage."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from image_files import encoded, labeled_folder, random_images
from shard_files import add, contents, parquet, tarred

from noisystudent.data.sources import open_source
from noisystudent.data.sources import parquet as parquet_files


@pytest.mark.parametrize("top", ["", "./", "photos/"])
def test_a_tar_holds_what_the_folder_holds(tmp_path: Path, top: str) -> None:
    folder = labeled_folder(tmp_path / "d")
    shard = open_source([tarred(folder, tmp_path / "d.tar", top)], labeled=True)
    assert contents(shard) == contents(open_source([folder], labeled=True))
    assert len(shard) == 12 and len(os.listdir(tmp_path)) == 2, "nothing is unpacked"
    assert contents(pickle.loads(pickle.dumps(shard))) == contents(shard)


def broken(whole: bytes, third: int, data: int) -> dict[str, bytes]:
    """A shard that is cut or overwritten at its third member, or that has no end blocks."""
    return {
        "data": whole[: data + 50],
        "header": whole[: third + 100],
        "boundary": whole[:third],
        "overwritten": whole[:third] + b"x" * 512 + whole[third + 512 :],
        "end": whole.rstrip(b"\0") + b"\0" * (-len(whole.rstrip(b"\0")) % 512),
    }


@pytest.mark.parametrize("kind", ["data", "header", "boundary", "overwritten", "end"])
@pytest.mark.parametrize("labeled", [True, False])
def test_a_broken_shard_gives_what_is_before_the_damage(tmp_path: Path, kind: str, labeled: bool) -> None:
    folder = labeled_folder(tmp_path / "d")
    tarred(folder, tmp_path / "b.tar")
    path = tarred(folder, tmp_path / "a.tar")
    expected = contents(open_source([path], labeled))
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2]
    path.write_bytes(broken(path.read_bytes(), third.offset, third.offset_data)[kind])
    source = open_source([tmp_path / "*.tar"], labeled)
    items = list(source.items())
    good = [item for item in items if item.size >= 0]
    (lost,) = (item for item in items if item.size < 0)
    whole = 12 if kind == "end" else 2
    in_first = [
        (i.label, source.read(i.shard, i.offset, i.size, i.id)) for i in good if i.id.startswith("a/")
    ]
    assert in_first[:whole] == expected[:whole]
    assert len(in_first) == whole + (kind == "data"), "a member that is cut is listed, and fails when decoded"
    assert sum(item.id.startswith("b/") for item in good) == 12 and len(source) == len(items)
    assert lost.id.startswith("a/a.tar@") and lost.label is None
    with pytest.raises(OSError, match="cut short or damaged"):
        source.read(lost.shard, lost.offset, lost.size, lost.id)
    assert any("a.tar: cut short or damaged from byte" in note for note in source.notes())


def test_streaming_from_large_row_groups_gives_a_note(tmp_path: Path) -> None:
    images = [encoded(image) for image in random_images(40)]
    path = parquet(tmp_path / "d.parquet", images, None, True, None)
    assert open_source([path], False).notes(streamed=True) == (), "groups of 5 rows"
    pq.write_table(pq.read_table(path), path)
    source = open_source([path], False)
    assert source.notes() == ()
    (note,) = source.notes(streamed=True)
    assert "d.parquet" in note and "up to 40" in note


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("names", [None, ["c0", "c1", "c2"]])
def test_parquet_holds_what_the_folder_holds(tmp_path: Path, struct: bool, names: list[str] | None) -> None:
    expected = contents(open_source([labeled_folder(tmp_path / "d")], labeled=True))
    numbers = [int(str(label)[1]) for label, _ in expected]
    path = parquet(tmp_path / "d.parquet", [data for _, data in expected], numbers, struct, names)
    source = open_source([path], labeled=True)
    assert len(source) == 12
    pickled = contents(pickle.loads(pickle.dumps(source)))
    assert pickled == [(label if names else str(label)[1:], data) for label, data in expected]


@pytest.mark.parametrize("struct", [True, False])
def test_a_row_group_may_be_larger_than_one_array_of_bytes(
    tmp_path: Path, struct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_files, "_CHUNK", 2)
    images = [encoded(image) for image in random_images(9)]
    source = open_source([parquet(tmp_path / "d.parquet", images, None, struct, None)], labeled=False)
    assert [data for _, data in contents(source)] == images
    assert isinstance(source, parquet_files.ParquetSource)
    assert [len(chunk) for chunk in source._group(0, 0).chunks] == [2, 2, 1], "groups of 5 rows"


def test_webdataset_labels_stand_beside_the_image(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a-000.tar", "w") as archive:
        for number in range(4):
            members = [
                (f"s/{number}.jpg", b"x"),
                (f"s/{number}.cls", b"%d\n" % (number % 2)),
                (f"s/{number}.json", b"{}"),
            ]
            for name, data in members if number < 2 else reversed(members):
                add(archive, name, data)
    with tarfile.open(tmp_path / "a-001.tar", "w") as archive:
        add(archive, "s/0.jpg", b"y")
        add(archive, "s/0.cls", b"1")
    for spec in (tmp_path, tmp_path / "a-*.tar"):
        items = list(open_source([spec], labeled=True).items())
        assert [item.label for item in items] == ["0", "1", "0", "1", "1"]
        assert len({item.id for item in items}) == 5 and [item.shard for item in items] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("padding", [0, 512, 10_240])
def test_a_tar_of_appended_tars_holds_what_they_hold(tmp_path: Path, padding: int) -> None:
    folder = labeled_folder(tmp_path / "d")
    files = sorted(folder.rglob("*.png"))
    parts = [
        tarred(folder, tmp_path / f"{number}.tar", files=files[number::3]).read_bytes().rstrip(b"\0")
        for number in range(3)
    ]
    whole = b"".join(part + bytes(1024 - len(part) % 512 + padding) for part in parts)
    (tmp_path / "whole.tar").write_bytes(whole)
    source = open_source([tmp_path / "whole.tar"], labeled=True)
    assert sorted(contents(source)) == sorted(contents(open_source([folder], labeled=True)))
    assert source.notes() == ()
    (tmp_path / "whole.tar").write_bytes(whole + b"x" * 512)
    source = open_source([tmp_path / "whole.tar"], labeled=True)
    assert len(source) == 13 and "damaged" in source.notes()[0]


def test_attributes_in_the_header_of_a_member_change_nothing(tmp_path: Path) -> None:
    for name, attribute in (("a.tar", "x"), ("b.tar", "x" * 2**17)):
        with tarfile.open(tmp_path / name, "w", format=tarfile.PAX_FORMAT) as archive:
            for number in range(3):
                member = tarfile.TarInfo(f"c/{number}.png")
                member.size, member.pax_headers = 1, {"SCHILY.xattr.user.about": attribute}
                archive.addfile(member, io.BytesIO(b"%d" % number))
    plain, long = (open_source([tmp_path / name], labeled=True) for name in ("a.tar", "b.tar"))
    assert contents(long) == contents(plain) and len(long) == 3 and long.notes() == ()


def test_hidden_files_change_nothing_in_a_tar(tmp_path: Path) -> None:
    files = [f"s/{number}.{end}" for number in range(4) for end in ("cls", "png")]
    members = [(name, str(int(name[2]) % 2).encode()) for name in files]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in members:
            add(archive, name, data)
    with tarfile.open(tmp_path / "mac.tar", "w") as archive:
        for name, data in members:
            add(archive, f"./{name.replace('/', '/._')}", b"\0\5\x16\7")
            add(archive, f"./{name}", data)
    plain, hidden = (open_source([tmp_path / name], labeled=True) for name in ("a.tar", "mac.tar"))
    assert contents(plain) == contents(hidden)
    assert [item.label for item in hidden.items()] == ["0", "1", "0", "1"]


def test_long_names_and_links_in_a_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "c/" + "n" * 200 + ".png", b"long")
        add(archive, "../../outside.png", b"up")
        link = tarfile.TarInfo("c/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    source = open_source([tmp_path / "a.tar"], labeled=False)
    assert [data for _, data in contents(source)] == [b"long", b"up"]
    assert any("left out (link: 1)" in note for note in source.notes())
