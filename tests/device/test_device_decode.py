"""JPEGs decoded on a GPU: the views of the CPU up to rounding, in order, without waiting, with fallbacks."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from device_training import in_thread
from PIL import Image
from pretend_decoder import Library
from pretend_gpu import Gpu, put

from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data import gpu_decode, loader
from noisystudent.data.decode import decode, window
from noisystudent.data.fetcher import Fetcher, Part
from noisystudent.data.gpu_decode import Windows, check_gpu_decoder, gpu_decoder
from noisystudent.data.loader import requested_batches
from noisystudent.data.prepare import Dataset, open_dataset, prepare
from noisystudent.data.sources import open_sources
from noisystudent.data.workers import in_workers
from noisystudent.errors import InputError, RunError
from noisystudent.run.rundir import DataDir

SIDE, DEVICE = 16, torch.device("cuda:0")
ROTATED = {274: 6}  # EXIF: height and width are swapped


def picture(height: int, width: int, seed: int) -> Image.Image:
    """A photograph has edges and no noise: small noise made large."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def saved(
    image: Image.Image, kind: str = "JPEG", exif: dict[int, int] | None = None, **options: Any
) -> bytes:
    file, tags = io.BytesIO(), Image.Exif()
    tags.update(exif or {})
    image.save(file, kind, **({"exif": tags} if exif else {}), **options)
    return file.getvalue()


def stored_as_rgb(image: Image.Image, ids: bytes) -> bytes:
    """A JPEG in RGB, whose colours have these ids; libjpeg writes R, G and B."""
    data = saved(image, keep_rgb=True)
    for gap in (b"\x11\x00", b"\x00"):  # in the frame and in the scan
        before, after = (b"".join(bytes([one]) + gap for one in names) for names in (b"RGB", ids))
        assert data.count(before) == 1
        data = data.replace(before, after)
    return data


def files() -> dict[str, tuple[bytes, bool]]:
    """Name -> (file, whether the GPU decodes its clean view)."""
    sizes = [(SIDE, SIDE), (30, 41), (41, 30), (23, 57)]
    plain = [(saved(picture(*size, seed)), True) for seed, size in enumerate(sizes)]
    others = [
        (saved(picture(25, 38, 10), exif=ROTATED), True),
        (saved(picture(33, 21, 11), progressive=True), True),
        (saved(picture(33, 21, 12), subsampling=0), True),
        (saved(picture(90, 70, 13)), False),  # decode() makes it smaller
        (saved(picture(20, 30, 14).convert("L")), False),
        (saved(picture(20, 30, 15).convert("CMYK")), False),
        (stored_as_rgb(picture(20, 30, 16), b"RGB"), False),
        (stored_as_rgb(picture(20, 30, 18), b"\1\2\3"), False),
        (saved(picture(20, 30, 17), "PNG"), False),
    ]
    return {f"{number:02d}": item for number, item in enumerate([*plain, *others])}


@pytest.fixture
def library(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    made, package = Library(), ModuleType("nvidia")
    package.nvimgcodec = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nvidia", package)
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", made)
    monkeypatch.setattr(gpu_decode, "from_dlpack", lambda image: image)
    monkeypatch.setattr(loader, "in_workers", in_thread)
    gpu_decoder.cache_clear()
    yield made
    gpu_decoder.cache_clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The files of `files`, in each of two classes, streamed; the pool is all of them."""
    root = tmp_path_factory.mktemp("jpegs")
    for folder in ("labeled/a", "labeled/b", "pool"):
        (root / folder).mkdir(parents=True)
        for number, (content, _) in enumerate(files().values()):
            (root / folder / f"{number:02d}").with_suffix(".jpg").write_bytes(content + folder.encode())
    config = DataConfig(
        labeled=(str(root / "labeled"),), unlabeled=(str(root / "pool"),), resolution=SIDE, plane="streamed",
        workers=0, decoder="gpu",
    )  # fmt: skip
    sources, out = open_sources(config), DataDir(root / "data")
    prepare(config, sources, out, 0, Progress())
    return open_dataset(out, config, sources)


def pool_batches(
    data: Dataset, device: torch.device, boxes: Any = None, workers: int = 1
) -> list[torch.Tensor]:
    rows = iter(np.array_split(np.random.default_rng(0).permutation(len(data.pool)), 3))
    options = {"resolution": SIDE, "device": device, "workers": workers, "boxes": boxes}
    return list(requested_batches(data.pool, rows, **options))


def half(rows: Any) -> Any:
    return np.tile(np.array([0.1, 0.2, 0.5, 0.6], np.float32), (len(rows), 1))


def differences(moved: list[torch.Tensor], expected: list[torch.Tensor]) -> torch.Tensor:
    """(N,) largest difference of each image, in grey levels."""
    assert [batch.is_cuda for batch in moved] == [True] * len(expected)
    pairs = [(a.cpu().int() - b.int()).abs() for a, b in zip(moved, expected, strict=True)]
    return torch.cat(pairs).amax((1, 2, 3))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("boxes", [None, half])
def test_the_gpu_makes_the_views_of_the_cpu(
    data: Dataset, library: Library, boxes: Any, workers: int
) -> None:
    expected = pool_batches(data, torch.device("cpu"), boxes, workers=0)
    assert not library.decoded
    moved = pool_batches(data, DEVICE, boxes, workers)
    assert differences(moved, expected).max() <= 1
    # Files of other kinds, and the large one in its clean view, never reach the library.
    suits = sum(suited or (boxes is not None and name == "07") for name, (_, suited) in files().items())
    assert len(library.decoded) == suits


def test_workers_only_read_what_the_gpu_decodes(data: Dataset) -> None:
    rows = np.arange(len(data.pool))
    fetcher = Fetcher((data.pool,), SIDE)
    with closing(in_workers(fetcher.encode, iter([(Part(rows, None),)]), 1)) as batches:
        (encoded,) = batches
    given = [content + b"pool" if suits else None for content, suits in files().values()]
    assert encoded.files == given
    others = [at for at, file in enumerate(given) if file is None]
    assert torch.equal(encoded.views, data.pool.fetch(np.array(others), SIDE))


def test_the_host_does_not_wait(data: Dataset, library: Library, gpu: Gpu) -> None:
    pool_batches(data, DEVICE)
    with gpu.silent():
        pool_batches(data, DEVICE)


@pytest.mark.parametrize("kind", ["fails", "turned"])
def test_what_the_library_cannot_decode_is_decoded_on_the_cpu(
    data: Dataset, library: Library, kind: str
) -> None:
    library.change = lambda _, pixels: None if kind == "fails" else pixels[:, :-1]
    moved = pool_batches(data, DEVICE)
    assert library.decoded
    assert differences(moved, pool_batches(data, torch.device("cpu"), workers=0)).max() == 0


def test_a_few_failures_keep_the_order(data: Dataset, library: Library) -> None:
    calls = iter(range(100))
    library.change = lambda _, pixels: None if next(calls) % 2 else pixels
    assert (
        differences(pool_batches(data, DEVICE), pool_batches(data, torch.device("cpu"), workers=0)).max() <= 1
    )


def test_calls_are_limited_by_pixels(
    data: Dataset, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pool_batches(data, DEVICE)
    monkeypatch.setattr(gpu_decode, "_PIXELS", 1500)
    assert all(torch.equal(a, b) for a, b in zip(pool_batches(data, DEVICE), whole, strict=True))


@pytest.mark.parametrize("fault", ["changed", "gone"])
def test_a_spoilt_file_stops_the_run_in_one_line(
    data: Dataset, library: Library, tmp_path: Path, fault: str
) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    for number, (content, _) in enumerate(files().values()):
        (pool / f"{number:02d}.jpg").write_bytes(content)
    config = DataConfig(labeled=(str(data.labeled.source.name),), unlabeled=(str(pool),))
    config = replace(config, resolution=SIDE, plane="streamed", workers=0, decoder="gpu")
    sources, out = open_sources(config), DataDir(tmp_path / "data")
    prepare(config, sources, out, 0, Progress())
    opened = open_dataset(out, config, sources)
    if fault == "gone":
        (pool / "02.jpg").unlink()
    else:
        (pool / "02.jpg").write_bytes(files()["02"][0][:-20])
    with pytest.raises(RunError, match=r"02\.jpg (changed since|cannot be read any more)"):
        pool_batches(opened, DEVICE)


def test_a_working_gpu_is_accepted(library: Library) -> None:
    check_gpu_decoder(DEVICE)
    assert len(library.decoded) == 1


def test_what_cannot_work_is_refused(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="the device is cpu"):
        check_gpu_decoder(torch.device("cpu"))
    library.change = lambda data, pixels: None
    with pytest.raises(InputError, match="cannot decode JPEGs here"):
        check_gpu_decoder(DEVICE)

    def fails(self: object, **options: Any) -> None:
        raise RuntimeError("Could not create decoder. Code: 8\nmore")

    gpu_decoder.cache_clear()
    monkeypatch.setattr(library.Decoder, "__init__", fails)
    with pytest.raises(InputError, match=r"fails \(Could not create decoder. Code: 8\)"):
        check_gpu_decoder(DEVICE)
    monkeypatch.setitem(sys.modules, "nvidia", None)
    with pytest.raises(InputError, match="nvImageCodec is missing; pip install"):
        check_gpu_decoder(DEVICE)


def test_a_run_without_a_gpu_is_refused_before_the_scan(
    images: Path, recipe: Path, tmp_path: Path, capsys: tiny.Capture
) -> None:
    words = ("run", recipe, *tiny.flags(images), "--out", tmp_path / "run", "--data.decoder", "gpu")
    assert "data.decoder is gpu, but the device is cpu" in tiny.refused(capsys, 2, *words)
    assert not (tmp_path / "run").exists()


def test_the_library_itself_is_called_rightly(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own decoder for CPUs, through the same calls: names, layout, orientation, colours, failures."""
    library = pytest.importorskip("nvidia.nvimgcodec")
    on_cpu = [library.Backend(library.BackendKind.CPU_ONLY)]
    real = library.Decoder
    kinds: list[Any] = []

    def decoder(device_id: int, backends: list[Any], options: str) -> Any:
        kinds.extend(backends)
        return real(device_id=library.NVIMGCODEC_DEVICE_CPU_ONLY, backends=on_cpu, options=options)

    monkeypatch.setattr(library, "Decoder", decoder)
    monkeypatch.setattr("pretend_streams.Stream.cuda_stream", 0)
    monkeypatch.setattr(
        gpu_decode, "from_dlpack", lambda image: put(torch.from_numpy(np.array(image.cpu())), DEVICE)
    )
    gpu_decoder.cache_clear()
    suited = [content for content, suits in files().values() if suits]
    decoded = [decode(content, 10**6) for content in suited]
    windows = Windows(np.array([image.size for image in decoded]), [None] * len(suited), SIDE)
    given: list[bytes | None] = [*suited]
    given[1] = suited[1][: len(suited[1]) // 3]
    views = gpu_decoder(DEVICE).decode(given, windows)
    gpu_decoder.cache_clear()
    assert len(kinds) == 2 and views.keys() == {*range(len(suited))} - {1}
    for at, view in views.items():
        expected = window(decoded[at].size, SIDE, None)
        top, left, height, width = expected
        pixels = torch.from_numpy(decoded[at].pixels[top : top + height, left : left + width].copy())
        resized = torch.nn.functional.interpolate(
            pixels.permute(2, 0, 1)[None], (SIDE, SIDE), mode="bicubic", antialias=True
        )[0]
        assert (view.cpu().int() - resized.int()).abs().max() <= 1, at
