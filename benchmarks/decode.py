"""Which decoder, and is decoding oversize photographs smaller worth it? Images a second on one core.

    python benchmarks/decode.py
    python benchmarks/decode.py --repeats 5 --side 224

The files are the 40 photographs of shared/data/imagenet-samples as they are, and eight of them enlarged to
4000 x 3000 pixels. `ours` is what training does with a file: checks, decoding, the clean view of --side
pixels; `whole` is the same with every file decoded at its full size. The others decode to RGB pixels and do
no more: the best of them is the ceiling. Every repeat times all of them in turn, in seconds of the processor;
ratios are taken within a repeat. A peer that is not installed is left out. torchvision's decoders are
deprecated since 0.29, nvJPEG among them.

With a GPU and nvImageCodec, `data.decoder: gpu` is timed too, by the clock, for a batch of files in YCbCr:
`views` is what training does with a batch that workers have read. `any backend` decodes with all that
nvImageCodec has, the hardware engine too, and does no more: it is the ceiling.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import statistics
import tarfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from noisystudent.data.decode import decode, view
from noisystudent.data.gpu_decode import Encoded, Windows, gpu_decoder, suits_gpu
from noisystudent.errors import first_line

PHOTOS = Path(__file__).parents[1] / ".." / "shared" / "data" / "imagenet-samples" / "photos.tar"
_LIMIT = 100_000_000
_OVERSIZE = (4000, 3000)
Contender = Callable[[bytes], object]


def photographs(photos: Path) -> dict[str, bytes]:
    """`<class>/<file>` and bytes of each photograph."""
    if not photos.exists():
        raise SystemExit(f"needs {photos}")
    with tarfile.open(photos) as archive:
        return {
            member.name.removeprefix("photos/"): file.read()
            for member in archive.getmembers()
            if member.isfile() and (file := archive.extractfile(member)) is not None
        }


def enlarged(data: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").resize(_OVERSIZE).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def contenders(side: int) -> dict[str, Contender]:
    found: dict[str, Contender] = {
        "ours": lambda data: view(decode(data, _LIMIT, side), side),
        "whole": lambda data: view(decode(data, _LIMIT), side),
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
    }
    for name, make in (("torchvision", _torchvision), ("simplejpeg", _simplejpeg), ("cv2", _cv2)):
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed and left out")
        else:
            found[name] = make()
    return found


def _torchvision() -> Contender:
    from torchvision.io import ImageReadMode, decode_image

    return lambda data: decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


def _simplejpeg() -> Contender:
    import simplejpeg

    return lambda data: simplejpeg.decode_jpeg(data, "RGB")


def _cv2() -> Contender:
    import cv2

    cv2.setNumThreads(1)
    return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def gpu_contenders(files: list[bytes], side: int) -> dict[str, Callable[[], object]]:
    """What decodes all these files on the GPU."""
    from nvidia import nvimgcodec as library

    sizes = np.array([decode(data, _LIMIT).size for data in files], np.int32)
    encoded, windows = Encoded.of([*files], side), Windows(sizes, [None] * len(files), side)
    decoder, whole = gpu_decoder(torch.device("cuda", 0)), library.Decoder()

    def fails(at: int) -> torch.Tensor:
        raise RuntimeError(f"nvImageCodec cannot decode photograph {at}")

    return {
        "views": lambda: decoder.views(encoded, windows, fails),
        "any backend": lambda: whole.decode(files),
    }


def measure_gpu(files: list[bytes], side: int, batch: int, repeats: int) -> None:
    """Print images a second by the clock of a batch on the GPU, or why there are none."""
    suited = [data for data in files if suits_gpu(data, side, None)]
    if not torch.cuda.is_available() or not suited:
        print("\ndecoding on a GPU was not measured: there is no GPU, or no file that suits it")
        return
    files = (suited * (batch // len(suited) + 1))[:batch]
    found: dict[str, list[float]] = {}
    try:
        names = gpu_contenders(files, side)
        for repeat in range(repeats + 2):  # two to warm up
            for name, contender in names.items():
                torch.cuda.synchronize()
                begun = time.perf_counter()
                contender()
                torch.cuda.synchronize()
                if repeat >= 2:
                    found.setdefault(name, []).append(batch / (time.perf_counter() - begun))
    except ImportError as error:
        print(f"\ndecoding on a GPU was not measured: {first_line(error)}")
        return
    print(f"\n{batch} photographs, {len(suited)} different ones, on the GPU, images/s by the clock")
    for name, values in found.items():
        print(f"  {name:12}{spread(values, '8.1f')}")
    print(f"  views / any backend {ratio(found, 'views', 'any backend')}")


def rates(files: list[bytes], names: dict[str, Contender], repeats: int) -> dict[str, list[float]]:
    """Images a second of each contender, a figure a repeat."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, contender in names.items():
            begun = time.process_time()
            for data in files:
                contender(data)
            found[name].append(len(files) / (time.process_time() - begun))
    return found


def spread(values: list[float], form: str = ".2f") -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} … {max(values):{form}})"


def ratio(rates: dict[str, list[float]], over: str, under: str) -> str:
    return spread([a / b for a, b in zip(rates[over], rates[under], strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="tar of photos/<class>/<image>")
    parser.add_argument("--batch", type=int, default=256, help="images of a batch on the GPU")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)
    names = contenders(arguments.side)
    peers = [name for name in names if name not in ("ours", "whole")]
    files = list(photographs(arguments.photos).values())
    for title, batch in (("photographs", files), ("oversize", [enlarged(data) for data in files[:8]])):
        found = rates(batch, names, arguments.repeats)
        found["ceiling"] = [max(values) for values in zip(*(found[name] for name in peers), strict=True)]
        print(f"\n{len(batch)} {title}, {sum(map(len, batch)) // len(batch) // 1000} kB each, images/s")
        for name in names:
            print(f"  {name:12}{spread(found[name], '8.1f')}")
        for over, under in (("ours", "Pillow"), ("ours", "ceiling"), ("ours", "whole")):
            print(f"  {over} / {under:9}{ratio(found, over, under)}")
    measure_gpu(files, arguments.side, arguments.batch, max(arguments.repeats, 3))


if __name__ == "__main__":
    main()
