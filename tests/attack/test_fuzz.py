"""Made-up YAML, flags, shards and images: used, or refused in one line, in 5 seconds and 2 GB at most.

FUZZ_SECONDS is the time of each test (default 20), and FUZZ_SEED the first seed (default 0). The same seed
draws the same inputs, as far as the time allows.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from importlib import resources
from pathlib import Path

import fuzzing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import Fault, damaged, fuzz, one_line
from hypothesis import strategies as st
from PIL import Image

SECONDS, SEED = float(os.environ.get("FUZZ_SECONDS", "20")), int(os.environ.get("FUZZ_SEED", "0"))
_MOST_READ = 100  # images that are read of a damaged source

pytestmark = pytest.mark.slow


def attacked(name: str, function: fuzzing.Function, inputs: st.SearchStrategy[bytes]) -> None:
    totals = fuzz(function, inputs, SECONDS, SEED)
    print(f"\nfuzz {name}: {totals} (seed {SEED})")
    assert totals.inputs > 0 and totals.refused < totals.inputs


# --- images ---


def pictures() -> dict[str, bytes]:
    """A small file of every kind of image."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 50
    kinds: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "jpeg": (image, "JPEG", {"exif": exif}),
        "progressive": (image, "JPEG", {"progressive": True, "subsampling": 0}),
        "cmyk": (image.convert("CMYK"), "JPEG", {}),
        "grey": (image.convert("L"), "JPEG", {"restart_marker_blocks": 2}),
        "png": (image, "PNG", {"exif": exif}),
        "palette": (image.convert("P"), "PNG", {"transparency": 3}),
        "16 bit": (Image.fromarray(noise[..., 0].astype(np.uint16) * 200), "PNG", {}),
        "alpha": (image.convert("RGBA"), "PNG", {}),
        "gif": (image, "GIF", {"save_all": True, "append_images": [image.rotate(90)]}),
        "bmp": (image, "BMP", {}),
        "bmp palette": (image.convert("P"), "BMP", {}),
        "tiff": (image, "TIFF", {"exif": exif}),
        "lzw": (image, "TIFF", {"compression": "tiff_lzw"}),
        "tiff jpeg": (image, "TIFF", {"compression": "jpeg"}),
        "fax": (image.convert("1"), "TIFF", {"compression": "group4"}),
        "webp": (image, "WEBP", {"exif": exif}),
        "lossless": (image, "WEBP", {"lossless": True}),
        "avif": (image, "AVIF", {}),
        "ppm": (image, "PPM", {}),
        "pgm": (image.convert("L"), "PPM", {}),
    }
    files = {}
    for name, (picture, kind, options) in kinds.items():
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        files[name] = stream.getvalue()
    files["plain"] = b"P3 3 2 255 " + b" 1 22 255" * 6
    return files


def decoded(data: bytes, _folder: Path) -> None:
    """Decode an image as training does; the last byte chooses the resolution."""
    from noisystudent.config import DataConfig
    from noisystudent.data.decode import DecodeError, decode, view

    for resolution in (None, 8):
        try:
            image = decode(data, DataConfig().max_pixels, resolution)
        except DecodeError as error:
            one_line(str(error))
        assert image.pixels.shape[0] * image.factor >= image.size[0]
        assert view(image, 8).shape == (3, 8, 8)


def test_images() -> None:
    attacked("images", decoded, damaged(pictures()))


# --- shards and arrays ---


def shards() -> dict[str, bytes]:
    """Tar, Parquet and .npz files of a few images, each behind the ending of its name."""
    images = [(f"{'ab'[number % 2]}/{number}.png", png) for number, png in enumerate([pictures()["png"]] * 4)]
    files: dict[str, bytes] = {}
    for kind, form in (
        ("ustar", tarfile.USTAR_FORMAT),
        ("gnu", tarfile.GNU_FORMAT),
        ("pax", tarfile.PAX_FORMAT),
    ):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
            for name, content in [*images, ("k1.png", images[0][1]), ("k1.cls", b"cat")]:
                info = tarfile.TarInfo(name if kind == "ustar" else name.replace("/", "/" + "d" * 120))
                info.size = len(content)
                info.pax_headers = {"comment": "x" * 40, "size": str(len(content))} if kind == "pax" else {}
                archive.addfile(info, io.BytesIO(content))
        files[f"{kind}.tar"] = stream.getvalue()
    bytes_of = [content for _, content in images]
    tables = {
        "numbers": pa.table({"bytes": bytes_of, "label": [0, 1, 0, 1]}),
        "text": pa.table(
            {"image": [{"bytes": one, "path": "x"} for one in bytes_of], "label": ["a", "b"] * 2}
        ),
        "many": pa.table({"image": bytes_of * 20, "label": ["a", None] * 40}),
    }
    for name, table in tables.items():
        for compression in ("none", "zstd"):
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression=compression, row_group_size=3)
            files[f"{name}-{compression}.parquet"] = sink.getvalue().to_pybytes()
    for name, save in (("stored", np.savez), ("deflated", np.savez_compressed)):
        stream = io.BytesIO()
        save(stream, images=np.zeros((4, 5, 5, 3), np.uint8), labels=np.array(["a", "b", "a", "b"]))
        files[f"{name}.npz"] = stream.getvalue()
    return files


def kind_of(data: bytes) -> str:
    for start, ending in ((b"PAR1", "parquet"), (b"PK", "npz")):
        if data.startswith(start):
            return ending
    return "tar"


def listed(data: bytes, folder: Path) -> None:
    """List and read all images of a shard."""
    from noisystudent.data.sources import open_source
    from noisystudent.errors import InputError

    path = folder / f"a.{kind_of(data)}"
    path.write_bytes(data)
    refusals = []
    for labeled in (False, True):
        try:
            source = open_source([path], labeled)
            for count, item in enumerate(source.items()):
                assert item.label is None or isinstance(item.label, str)
                if count < _MOST_READ:
                    with contextlib.suppress(OSError):  # it is in the ledger with this reason
                        source.read(item.shard, item.offset, item.size, item.id)
            assert len(source) == count + 1
            source.notes(), source.fingerprint()
        except InputError as error:
            refusals.append(str(error))
    for line in refusals:
        one_line(line)


def test_shards() -> None:
    attacked("shards", listed, damaged(shards()))


# --- YAML and flags ---


def recipes() -> dict[str, bytes]:
    folder = resources.files("noisystudent.recipes")
    return {one.name: one.read_bytes() for one in folder.iterdir() if one.name.endswith(".yaml")}


WORDS = """teacher student students train model options data labeled lr steps seed name selection per_class a
    << &a *a &b *b !!binary !!python/name:os.system !x { } [ ] | > ' # --- = ~ null true .inf -.nan 1e999 0x1F
    1:59:59 2001-12-31 -1 0.5 \\0 \\ud800 é"""
SPACED = ("- ", ": ", "? ", ", ", "\n", "\n  ", "\n    ", '"', "%YAML 1.1", "9" * 30, "\u202e", "\x1b[31m")
PIECES = (*WORDS.split(), *SPACED)
GOOD = ("1", "2", "0.5", "true", "false", "null", "auto", "paper", "[0.5]", "[1, 2]", "{}", "cpu")


def doubled(count: int) -> str:
    """A list of aliases, each of which stands for twice as many values as the one before it."""
    return f"[&a0 [x, x], {', '.join(f'&a{n + 1} [*a{n}, *a{n}]' for n in range(count))}]"


def values() -> st.SearchStrategy[str]:
    """YAML text: pieces of syntax in any order, or any text."""
    return st.one_of(
        st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
        st.lists(st.sampled_from(PIECES), max_size=30).map(" ".join),
        st.text(max_size=60),
        st.integers(1, 2000).map(lambda n: "[" * n),
        st.integers(1, 2000).map(lambda n: "{a: " * n),
        st.integers(2, 40).map(doubled),
    )


@st.composite
def flags(draw: st.DrawFn) -> bytes:
    """Flags with values, separated by zero bytes."""
    from noisystudent.recipes import field_help

    names = [name for name, _, _ in field_help()]
    words: list[str] = []
    # One flag with a value that many fields have is often taken, so that a plan is made.
    value = draw(st.sampled_from([st.sampled_from(GOOD), values()]))
    for _ in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(names))
        if draw(st.integers(0, 5)) == 0:
            name = draw(
                st.one_of(st.text(max_size=20), st.just(f"students.{draw(st.text(max_size=5))}.init"))
            )
        words += [f"--{name}", draw(value)]
    return b"flags\0" + "\0".join(words).encode("utf-8", "surrogateescape")


def planned(data: bytes, folder: Path) -> None:
    """Print the plan of a recipe, or of flags, as the command line does."""
    from noisystudent.cli import main

    photos = folder / "photos"
    if not photos.exists():
        for name in ("a/1.png", "b/2.png"):
            (photos / name).parent.mkdir(parents=True)
            (photos / name).write_bytes(b"x")
    words = ["plan", "--out", str(folder / "run"), "--labeled", str(photos), "--unlabeled", str(photos)]
    if data.startswith(b"flags\0"):
        words += data[6:].decode("utf-8", "surrogateescape").split("\0")
    else:
        (folder / "mine.yaml").write_bytes(data)
        words.insert(1, str(folder / "mine.yaml"))
    error = io.StringIO()
    try:
        with contextlib.redirect_stderr(error):
            main(words)
    except SystemExit as ended:
        if ended.code not in (0, 2):
            raise Fault(f"exit code {ended.code}: {error.getvalue()}") from ended
        if ended.code == 2:
            line = error.getvalue()
            assert line.startswith("noisystudent: ") and line.endswith("\n") and line[:-1].isprintable()
            assert len(line) < 2000
            one_line(line[:-1])


def recipe_files() -> st.SearchStrategy[bytes]:
    return st.one_of(
        st.sampled_from(list(recipes().values())),
        damaged(recipes()),
        values().map(lambda text: text.encode("utf-8", "replace")),
        values().map(lambda text: f"teacher: {text}".encode("utf-8", "replace")),
        st.binary(max_size=100),
    )


def test_recipes_and_flags() -> None:
    attacked("recipes and flags", planned, st.one_of(recipe_files(), flags()))


# --- the harness itself ---


def slow(data: bytes, _folder: Path) -> None:
    while data:
        pass


def large(data: bytes, _folder: Path) -> None:
    assert np.ones(2**28 * len(data)).all()


def crashed(data: bytes, _folder: Path) -> None:
    if data:
        os.abort()


def silent(data: bytes, _folder: Path) -> None:
    if data:
        one_line("")


@pytest.mark.parametrize("function", [slow, large, crashed, silent])
def test_the_harness_sees_a_fault(function: fuzzing.Function) -> None:
    child = fuzzing.Child(function)
    with pytest.raises(Fault):
        child.check(b"xx")
    child.close()


def test_the_harness_counts_what_is_refused() -> None:
    child = fuzzing.Child(decoded)
    child.check(pictures()["png"])
    child.check(b"no image")
    child.close()
    assert (child.totals.inputs, child.totals.refused) == (2, 1)
