"""JPEG files decoded on an NVIDIA GPU by nvImageCodec, as the choice `data.decoder: gpu`.

A view is that of `decode.view`, up to rounding in the decoder and in the resize. Workers read the files and
decode all images that are not for the GPU. The scan decodes on the CPU, so damaged files are in ledger.csv.
This was not measured on a GPU.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torch.nn import functional
from torch.utils.dlpack import from_dlpack

from noisystudent.data.decode import Box, reduce_jpeg, window
from noisystudent.data.transfer import upload
from noisystudent.errors import InputError, first_line

_PIXELS = 2**26  # decoded in one call of the library: 200 MB, or a single image that is larger
_YCBCR = [1, 2, 3]  # ids of the colours in JFIF files; other ids may stand for RGB


class Encoded(NamedTuple):
    """A batch as a worker sends it.

    Attributes:
        files: for each image the bytes of its JPEG, or None if the CPU has decoded it.
        views: (n, 3, R, R) uint8 views of the n images without bytes, in order.
    """

    files: list[bytes | None]
    views: Tensor

    @classmethod
    def of(cls, images: list[bytes | Tensor], resolution: int) -> Encoded:
        """A batch of files, and views (3, R, R) of side R = `resolution`."""
        files = [image if isinstance(image, bytes) else None for image in images]
        views = [image for image in images if isinstance(image, Tensor)]
        # One tensor: each that a worker sends takes an open file.
        empty = torch.empty((0, 3, resolution, resolution), dtype=torch.uint8)
        return cls(files, torch.stack(views) if views else empty)


class Windows(NamedTuple):
    """The views that are made of the images of a batch.

    Attributes:
        sizes: (B, 2) height and width of the upright images in pixels.
        boxes: B crop boxes; None: the clean view.
        resolution: side R of the views.
    """

    sizes: NDArray[np.int32]
    boxes: list[Box | None]
    resolution: int


def suits_gpu(data: bytes, resolution: int, box: Box | None) -> bool:
    """Return True for a JPEG in YCbCr that `decode` decodes at full size for this view.

    A file in grey, RGB or CMYK stays on the CPU, and so does one that `decode` makes smaller for the view.

    Args:
        data: the file; its scan has decoded it.
        resolution: side R of the view.
        box: crop box; None: the clean view.
    """
    if not data.startswith(b"\xff\xd8"):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            assert isinstance(image, JpegImageFile)
            ycbcr = [layer[0] for layer in image.layer] == _YCBCR and image.info.get("adobe_transform") != 0
            return ycbcr and reduce_jpeg(image, resolution, box) == 1


class GpuDecoder:
    """Decoder of JPEG files on one GPU, with a stream of its own, so that training goes on meanwhile.

    Args:
        device: the GPU.

    Raises:
        ImportError: nvImageCodec is not installed.
        RuntimeError: it cannot use the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        from nvidia import nvimgcodec as library  # here, because it belongs to an optional extra

        # The library splits a batch between its backends, whose pixels may differ. These two leave out its
        # CPU decoder and the hardware engine, so pixels do not depend on the batch. The engine also writes
        # before earlier work of its stream has ended (github.com/meta-pytorch/torchcodec/pull/1634).
        kinds = (library.BackendKind.GPU_ONLY, library.BackendKind.HYBRID_CPU_GPU)
        backends = [library.Backend(kind) for kind in kinds]
        self._stream = torch.cuda.Stream(device)
        self._decoder = library.Decoder(
            device_id=self._stream.device.index,
            backends=backends,
            options=":fancy_upsampling=1",  # interpolates subsampled colours, as libjpeg-turbo does
        )
        self._params = library.DecodeParams(apply_exif_orientation=True, color_spec=library.ColorSpec.SRGB)

    def views(self, encoded: Encoded, windows: Windows, on_cpu: Callable[[int], Tensor]) -> Tensor:
        """Views (B, 3, R, R) uint8 of a batch, on the GPU.

        Args:
            encoded: the batch.
            windows: the views to make.
            on_cpu: decodes the image at a place of the batch to (3, R, R) uint8, if the library cannot.
        """
        main = torch.cuda.current_stream(self._stream.device)
        with torch.cuda.stream(self._stream):
            views = self.decode(encoded.files, windows)
            given = iter(encoded.views)
            missing = [(at, file) for at, file in enumerate(encoded.files) if at not in views]
            rest = {at: next(given) if file is None else on_cpu(at) for at, file in missing}
            if rest:
                (moved,) = upload([torch.stack(list(rest.values()))], self._stream.device)
                views |= zip(rest, moved, strict=True)
            batch = torch.stack([views[at] for at in range(len(encoded.files))])
        main.wait_stream(self._stream)
        batch.record_stream(main)  # its memory is not used again before the main stream has read it
        return batch

    def decode(self, files: list[bytes | None], windows: Windows) -> dict[int, Tensor]:
        """Decode files in the current stream, which is that of the decoder.

        Returns:
            Views (3, R, R) uint8 by place. Places of other files, and of files that the library could not
                decode, are missing.
        """
        views: dict[int, Tensor] = {}
        ends = windows.sizes.prod(1, dtype=np.int64).cumsum()
        given = [(at, file) for at, file in enumerate(files) if file is not None]
        for _, group in groupby(given, lambda one: ends[one[0]] // _PIXELS):
            places, chunk = zip(*group, strict=True)
            stream = self._stream.cuda_stream
            images = self._decoder.decode(list(chunk), params=self._params, cuda_stream=stream)
            for at, image in zip(places, images, strict=True):
                if image is None:
                    continue
                pixels = from_dlpack(image)  # (H, W, 3)
                if pixels.shape == (*windows.sizes[at], 3):
                    views[at] = _view(pixels, windows.resolution, windows.boxes[at])
        return views


@cache
def gpu_decoder(device: torch.device) -> GpuDecoder:
    """The decoder of a GPU; see `GpuDecoder`."""
    return GpuDecoder(device)


def check_gpu_decoder(device: torch.device) -> None:
    """Check that JPEGs can be decoded on this device, by decoding one.

    Raises:
        InputError: the device is no GPU, or nvImageCodec is not installed or does not work.
    """
    otherwise = "or set it to cpu"
    if device.type != "cuda":
        raise InputError(f"data.decoder is gpu, but the device is {device.type}; use a GPU, {otherwise}")
    file, side = io.BytesIO(), 16
    Image.new("RGB", (side, side)).save(file, "JPEG")
    try:
        decoder = gpu_decoder(device)
        windows = Windows(np.full((1, 2), side, np.int32), [None], side)
        with torch.cuda.stream(decoder._stream):
            works = bool(decoder.decode([file.getvalue()], windows))
    except ImportError as error:
        raise InputError(
            "data.decoder is gpu and nvImageCodec is missing; pip install 'noisystudent[gpu-decode]',"
            f" {otherwise}"
        ) from error
    except RuntimeError as error:
        raise InputError(
            f"data.decoder is gpu, but nvImageCodec fails ({first_line(error)}); install the one for this"
            f" CUDA version with its extra nvjpeg, {otherwise}"
        ) from error
    if not works:
        raise InputError(
            "data.decoder is gpu, but nvImageCodec cannot decode JPEGs here; install its extra nvjpeg,"
            f" {otherwise}"
        )


def _view(image: Tensor, resolution: int, box: Box | None) -> Tensor:
    """`decode.view` of an image (H, W, 3) uint8 on a GPU."""
    top, left, height, width = window((image.shape[0], image.shape[1]), resolution, box)
    pixels = image[top : top + height, left : left + width].permute(2, 0, 1)
    if height == width == resolution:
        return pixels
    # CUDA resizes uint8 without antialiasing only.
    size = (resolution, resolution)
    resized = functional.interpolate(pixels[None].float(), size, mode="bicubic", antialias=True)[0]
    return resized.round_().clamp_(0, 255).to(torch.uint8)
