"""Networks in ONNX files, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from noisystudent.errors import InputError, first_line
from noisystudent.models.weights import class_names, temperature_in, transform_in


class OnnxModel:
    """An exported network, without gradients.

    Args:
        path: ONNX file that the command `export` wrote.

    Attributes:
        name: name of the file.
        classes: class names in the order of the logits.
        num_classes: K.
        resolution: side of the images in pixels.
        transform: arguments of timm's transform; None: the images are clean views.
        temperature: the logits are divided by it in the graph's second output, the probabilities.

    Raises:
        InputError: the extra `export` is not installed, or the command `export` did not write the file.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime  # here, because it belongs to the optional extra `export`
        except ModuleNotFoundError as error:
            raise InputError(f"{path} needs {error.name}; pip install 'noisystudent[export]'") from error
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # errors of ONNX Runtime have no other common base
            raise InputError(
                f"{path} is not a readable ONNX file ({first_line(error)}); export the model again"
            ) from error
        # Files of older versions have no second output.
        (images, *_), (logits, *_) = self._session.get_inputs(), self._session.get_outputs()
        self._names = images.name, logits.name
        self._raw = isinstance(images.shape[1], str)  # (B, H, W, 3) of any size, for `export --raw-images`
        metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        if images.type != "tensor(uint8)" or not {"classes", "resolution"} <= metadata.keys():
            raise InputError(
                f"{path} takes {images.type} images and has metadata {sorted(metadata)}; give a file that"
                " `export --format onnx` wrote, with uint8 images and metadata classes and resolution"
            )
        try:
            self.name, self.resolution = path.name, int(metadata["resolution"])
            self.num_classes = int(logits.shape[-1])
            self.classes = class_names(metadata["classes"], self.num_classes)
            self.temperature, self.transform = temperature_in(metadata), transform_in(metadata)
        except (ValueError, TypeError, InputError) as error:
            raise InputError(
                f"{path}: its metadata is damaged ({first_line(error)}); export the model again"
            ) from error

    def __call__(self, images: Tensor) -> Tensor:
        """Compute logits: images (B, 3, S, S) uint8 on any device -> (B, K) float32 on the CPU."""
        # The graph of raw images does not change an image of S×S.
        images = images.cpu().permute(0, 2, 3, 1) if self._raw else images.cpu()
        (logits,) = self._session.run([self._names[1]], {self._names[0]: images.contiguous().numpy()})
        return torch.from_numpy(logits)
