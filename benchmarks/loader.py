"""Does training or labelling wait for images? Images a second from a JPEG folder and from decoded squares.

    python benchmarks/loader.py
    python benchmarks/loader.py --workers 1 2 --repeats 5 --side 224

The folder holds --images copies of the 40 photographs of shared/data/imagenet-samples, each with a comment of
its own, so that all differ in content and none in decoding time. `folder` decodes them in workers, `cache`
reads squares of --side pixels decoded once (--data.plane resident). `peer` is torchvision's ImageFolder with
RandomResizedCrop (train) or Resize and CenterCrop (label), bicubic, to uint8, under DataLoader; it does not
look whether a file is whole and still the one that was scanned. `decoder` is workers that read the files,
decode them to RGB arrays with Pillow and hand nothing over: the ceiling.

train: windows of random area and aspect, resized. label: the clean view; from the cache a gather without
workers. `pad 32`: squares of 32 pixels as they are, what crop 'pad' starts from: a gather as well.
model: labelling with 1 worker and a network on 1 thread, beside the slower of the two alone.

All streams stay open and are timed in turn, --seconds each, once their queues are full; ratios are taken
within a repeat: median (least … greatest).
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from decode import PHOTOS, photographs, ratio, spread
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from noisystudent.augment.plan import crop_boxes
from noisystudent.augment.policies import Policy
from noisystudent.config import DataConfig
from noisystudent.console import Progress
from noisystudent.data.imageset import ImageSet
from noisystudent.data.loader import joint_batches, requested_batches
from noisystudent.data.prepare import open_dataset, prepare
from noisystudent.data.sources import open_sources
from noisystudent.run.rundir import DataDir
from noisystudent.runtime import resolve_device

_CPU = resolve_device("cpu")
_BATCH, _SMALL, _ENDLESS = 32, 32, 1_000_000
_RATIOS = [("folder", "peer"), ("folder", "decoder"), ("cache", "peer"), ("cache", "folder")]
Plane = Literal["resident", "streamed"]
Stream = Iterator[int]
"""Gives the size of each batch as it arrives."""


def folder(work: Path, count: int) -> Path:
    """`<class>/<number>.jpg`, made once."""
    root, files = work / f"photographs-{count}", photographs(PHOTOS)
    for number in range(count):
        name, data = list(files.items())[number % len(files)]
        path = root / name.split("/")[0] / f"{number:05d}.jpg"
        if not path.exists():
            comment = b"%08d" % number
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[:2] + b"\xff\xfe\x00\x0a" + comment + data[2:])  # 10 bytes with the length
    return root


def images(root: Path, work: Path, plane: Plane, side: int) -> ImageSet:
    config = DataConfig(labeled=(str(root),), plane=plane, resolution=side, val_fraction=0.05)
    out = DataDir(work / f"{plane}-{side}")
    prepare(config, open_sources(config), out, 0, Progress())
    return open_dataset(out, config, open_sources(config)).labeled


def training(found: ImageSet, side: int, workers: int, crop: bool = True) -> Stream:
    boxes = partial(crop_boxes, Policy(crop="inception"), 0) if crop else None
    for batch in joint_batches(
        found,
        None,
        None,
        labeled_batch=_BATCH,
        pool_batch=0,
        resolution=side,
        seed=0,
        start=0,
        stop=_ENDLESS,
        device=_CPU,
        workers=workers,
        boxes=boxes,
    ):
        yield len(batch.images)


def clean(found: ImageSet, side: int, workers: int) -> Iterator[Tensor]:
    rows = np.tile(np.arange(len(found)), _ENDLESS // len(found))
    parts = (rows[at : at + _BATCH] for at in range(0, len(rows), _BATCH))
    return requested_batches(found, parts, resolution=side, device=_CPU, workers=workers)


def labeling(found: ImageSet, side: int, workers: int) -> Stream:
    yield from map(len, clean(found, side, workers))


class Decoder(Dataset[int]):
    """Files decoded to arrays that are dropped."""

    def __init__(self, root: Path) -> None:
        self.paths = sorted(root.rglob("*.jpg"))

    def __getitem__(self, rows: list[int]) -> int:
        for row in rows:
            image = Image.open(io.BytesIO(self.paths[row].read_bytes()))
            np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        return len(rows)


def decoder(root: Path, workers: int) -> Stream:
    decoding = Decoder(root)
    yield from DataLoader(
        decoding, batch_size=None, sampler=_shuffled(len(decoding.paths)), num_workers=workers
    )


def peer(root: Path, side: int, workers: int, crop: bool) -> Stream:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    bicubic = v2.InterpolationMode.BICUBIC
    cut = (
        [v2.RandomResizedCrop(side, interpolation=bicubic)]
        if crop
        else [v2.Resize(side * 8 // 7, interpolation=bicubic), v2.CenterCrop(side)]
    )
    found = ImageFolder(str(root), v2.Compose([*cut, v2.PILToTensor()]))
    for views, _ in DataLoader(found, batch_sampler=_shuffled(len(found)), num_workers=workers):
        yield len(views)


def _shuffled(count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(count) for _ in range(_ENDLESS // 10 // count)])
    return order[: len(order) // _BATCH * _BATCH].reshape(-1, _BATCH).tolist()


class Classifier:
    """A network on one thread; alone it sees one batch again and again."""

    def __init__(self, name: str, side: int) -> None:
        import timm

        self._model: nn.Module = timm.create_model(name, num_classes=10).eval()
        self._batch = torch.zeros((_BATCH, 3, side, side), dtype=torch.uint8)

    def alone(self) -> Stream:
        while True:
            yield self(self._batch)

    def fed(self, batches: Iterator[Tensor]) -> Stream:
        yield from map(self, batches)

    def __call__(self, batch: Tensor) -> int:
        with torch.inference_mode():
            self._model(batch.float() / 255)
        return len(batch)


def rates(streams: dict[str, Stream], repeats: int, seconds: float) -> dict[str, list[float]]:
    """Images a second of each stream, a figure a repeat; what its queue held at first is not counted."""
    found: dict[str, list[float]] = {name: [] for name in streams}
    for stream in streams.values():
        next(stream)
    for _ in range(repeats):
        for name, stream in streams.items():
            settled = time.perf_counter() + seconds / 2
            while time.perf_counter() < settled:
                next(stream)
            count, begun = 0, time.perf_counter()
            while time.perf_counter() - begun < seconds:
                count += next(stream)
            found[name].append(count / (time.perf_counter() - begun))
            time.sleep(seconds / 4)  # its workers fill their queues, and leave the cores to the next
    return found


def show(title: str, found: dict[str, list[float]], ratios: list[tuple[str, str]]) -> None:
    print(f"\n{title}, images/s")
    for name, values in found.items():
        print(f"  {name:16}{spread(values, '8.0f')}")
    for over, under in ratios:
        print(f"  {over} / {under:12}{ratio(found, over, under)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--models", nargs="*", default=["resnet18", "test_efficientnet"], help="timm names")
    parser.add_argument("--work", type=Path, default=Path(".cache/benchmarks/loader"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    side, timed = arguments.side, partial(rates, repeats=arguments.repeats, seconds=arguments.seconds)
    root = folder(arguments.work, arguments.images)
    sets: list[tuple[Plane, int]] = [("streamed", side), ("resident", side), ("resident", _SMALL)]
    streamed, cached, small = (images(root, arguments.work, plane, size) for plane, size in sets)
    for workers in arguments.workers:
        common = {"decoder": decoder(root, workers)}
        found = timed(
            common
            | {
                "folder": training(streamed, side, workers),
                "peer": peer(root, side, workers, crop=True),
                "cache": training(cached, side, workers),
            }
        )
        show(f"train, {side} pixels, workers: {workers}", found, _RATIOS)
        found = timed(
            common
            | {
                "folder": labeling(streamed, side, workers),
                "peer": peer(root, side, workers, crop=False),
                "cache": labeling(cached, side, 0),
                "pad 32": training(small, _SMALL, 0, crop=False),
            }
        )
        show(f"label, {side} pixels, workers: {workers}", found, [*_RATIOS, ("pad 32", "peer")])
    for name in arguments.models:
        network = Classifier(name, side)
        alone = {"folder": labeling(streamed, side, 1), "network": network.alone()}
        found = timed(alone | {"both": network.fed(clean(streamed, side, 1))})
        found["slower"] = [min(pair) for pair in zip(found["folder"], found["network"], strict=True)]
        show(f"model {name}, {side} pixels", found, [("both", "slower")])


if __name__ == "__main__":
    main()
