"""What do the 15 corruptions of ImageNet-C cost, at 32 and at 224 pixels, beside the peer package?

    python benchmarks/corruptions.py
    python benchmarks/corruptions.py --device cuda

First all 15 corruptions at all 5 severities on 1,000 images of 32 pixels and on 100 of 224, with the
constants of that size, once: seconds, corruption by corruption, and in all. Then `ours` and the peer
(imagecorruptions-imaug) in turn on the same few images, at the peer's constants, severity 3, --repeats times:
the ratio within each repeat, its median, least and greatest. `floor` is one pass over the pixels to float and
back, which no corruption can do without. The peer's frost, elastic transform and pixelate are other
algorithms. With --device of a GPU a third table compares it with the CPU on the same images. The images are
photographs of shared/data/imagenet-samples, again and again; without them, smooth noise.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tarfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from noisystudent.robustness.corruptions import CORRUPTIONS, Frost, corrupt, find_frost, kernels
from noisystudent.runtime import resolve_device

_PHOTOS = Path(__file__).parents[1] / ".." / "shared" / "data" / "imagenet-samples" / "photos.tar"
_SEVERITY = 3
_FEW = {32: 64, 224: 4}
_MANY = {32: 4096, 224: 128}


def pictures(count: int, side: int) -> Tensor:
    """(count, 3, side, side) uint8."""
    if not _PHOTOS.exists():
        coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return (torch.nn.functional.interpolate(coarse, side, mode="bicubic") * 255).clamp(0, 255).byte()
    found = []
    with tarfile.open(_PHOTOS) as archive:
        for member in archive:
            if member.isfile():
                file = archive.extractfile(member)
                assert file is not None
                image = Image.open(file).convert("RGB")
                found.append(np.array(image.resize((side, side), Image.Resampling.BILINEAR)))
    tensor = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)
    return tensor[torch.arange(count) % len(tensor)].contiguous()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    begun = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - begun


def ours(images: Tensor, name: str, severity: int, frost: Frost | None, of: int | None = None) -> Tensor:
    rows = np.arange(len(images))
    return corrupt(images, name, severity, seed=0, rows=rows, frost=frost, constants_of=of)


def everything(count: int, side: int, frost: Frost | None) -> None:
    """All corruptions at all severities, once."""
    images, cpu = pictures(count, side), torch.device("cpu")
    ours(images[:1], "shot_noise", 1, frost)  # what is imported and built on first use is not counted
    print(f"\n{count} images of {side} pixels, 5 severities, {torch.get_num_threads()} threads: seconds")
    total = 0.0
    for name in names(frost):
        spent = sum(seconds(partial(ours, images, name, severity, frost), cpu) for severity in range(1, 6))
        total += spent
        print(f"  {name:18} {spent:7.2f}   {5 * count / spent:9.0f} images/s")
    print(f"  {'all':18} {total:7.2f}   {5 * count * len(names(frost)) / total:9.0f} images/s")


def names(frost: Frost | None) -> list[str]:
    return [name for name in CORRUPTIONS if name != "frost" or frost is not None]


def beside_the_peer(side: int, frost: Frost | None, repeats: int) -> None:
    """Alternating repeats on the same images."""
    import imagecorruptions

    images, cpu = pictures(_FEW[side], side), torch.device("cpu")
    arrays = list(images.permute(0, 2, 3, 1).numpy())

    def peer(name: str) -> None:
        for image in arrays:
            imagecorruptions.corrupt(image, severity=_SEVERITY, corruption_name=name)

    print(
        f"\n{len(images)} images of {side} pixels, ms an image: ours, peer, and how many times faster ours is"
    )
    floor = min(seconds(lambda: kernels.quantize(images.float()), cpu) for _ in range(repeats))
    print(f"  {'floor':18} {1e3 * floor / len(images):8.3f}")
    for name in names(frost):
        pairs = [
            (
                seconds(partial(ours, images, name, _SEVERITY, frost, 224), cpu),
                seconds(partial(peer, name), cpu),
            )
            for _ in range(repeats + 1)
        ][1:]  # the first builds tables and compiles
        own, other = (1e3 * statistics.median(side) / len(images) for side in zip(*pairs, strict=True))
        print(f"  {name:18} {own:8.3f} {other:8.3f}   {spread([b / a for a, b in pairs])}")


def on_a_device(side: int, device: torch.device, frost: Frost | None, repeats: int) -> None:
    """The same images on the CPU and on a GPU, in turn."""
    few, cpu = pictures(_FEW[side], side), torch.device("cpu")
    many = pictures(_MANY[side], side).to(device)
    print(
        f"\n{side} pixels, images/s: CPU ({torch.get_num_threads()} threads), {device}, how many times more"
    )
    rates: dict[str, tuple[float, float]] = {}
    for name in names(frost):
        pairs = [
            (
                len(few) / seconds(partial(ours, few, name, _SEVERITY, frost), cpu),
                len(many) / seconds(partial(ours, many, name, _SEVERITY, frost), device),
            )
            for _ in range(repeats + 1)
        ][1:]
        here, there = (statistics.median(side) for side in zip(*pairs, strict=True))
        rates[name] = here, there
        print(f"  {name:18} {here:9.0f} {there:9.0f}   {spread([b / a for a, b in pairs])}")
    kept = [rate for name, rate in rates.items() if name not in ("glass_blur", "jpeg_compression")]
    here, there = (len(kept) / sum(1 / rate for rate in side) for side in zip(*kept, strict=True))
    print(f"  {'all but two':18} {here:9.0f} {there:9.0f}   {there / here:.1f}   (no glass blur, no JPEG)")


def spread(values: list[float]) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} … {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--frost", type=Path, help="folder of frost1.png to frost5.jpg; else the installed package"
    )
    parser.add_argument("--skip-everything", action="store_true", help="only the comparisons")
    arguments = parser.parse_args()
    device, frost = resolve_device(arguments.device), find_frost(arguments.frost)
    warnings.simplefilter("ignore")
    print(f"frost: {frost.source}" if frost else "frost: no photographs, left out of every figure")
    if not arguments.skip_everything:
        everything(1000, 32, frost)
        everything(100, 224, frost)
    if importlib.util.find_spec("imagecorruptions") is None:
        print("\nimagecorruptions-imaug is not installed and left out")
    else:
        for side in (32, 224):
            beside_the_peer(side, frost, arguments.repeats)
    if device.type != "cpu":
        for side in (32, 224):
            on_a_device(side, device, frost, arguments.repeats)


if __name__ == "__main__":
    main()
