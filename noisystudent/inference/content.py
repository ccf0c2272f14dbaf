"""What is exported: the graph of a model, and the description that a file and its neighbour hold."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import timm
from timm.data import resolve_data_config
from timm.models import filter_pretrained_cfg

from noisystudent.data.decode import clean_share
from noisystudent.inference.graph import Graph
from noisystudent.inference.predictor import Predictor
from noisystudent.models.classifier import Classifier
from noisystudent.models.weights import TRANSFORM

_DECODE = "Decode the image at full size to RGB, apply its EXIF orientation, and drop its transparency."


@dataclass(frozen=True, slots=True)
class Content:
    """What is exported.

    Attributes:
        predictor: of one model.
        model: this model, in evaluation mode and in timm's memory format.
        raw_images: True if the graph makes the clean view itself.
    """

    predictor: Predictor
    model: Classifier
    raw_images: bool = False

    @property
    def graph(self) -> Graph:
        """The graph of the model."""
        return Graph(self.model, self.predictor.temperature, raw_images=self.raw_images).eval()

    def description(self, *, graph: bool = True) -> dict[str, Any]:
        """How images are prepared, and what the outputs mean: values for JSON.

        Args:
            graph: False if only the weights are exported, so that nothing is computed inside.
        """
        model, side = self.model, self.model.resolution
        crop, interpolation = self._view()
        shape = "(B, H, W, 3), any size" if self.raw_images else f"(B, 3, {side}, {side})"
        inside = [*(["crop", "resize"] if self.raw_images else []), "normalize", "temperature"]
        return {
            "architecture": model.name,
            "resolution": side,
            "classes": list(self.predictor.classes),
            "temperature": self.predictor.temperature,
            "crop": crop,
            "interpolation": interpolation,
            TRANSFORM: None if self.predictor.view is None else self._published(),
            "mean": model.mean.flatten().tolist(),
            "std": model.std.flatten().tolist(),
            "images": f"{shape}, uint8, RGB" if graph else f"(B, 3, {side}, {side}), float32, RGB",
            "inside": inside if graph else [],
            "steps": self._steps(graph),
        }

    def _view(self) -> tuple[float, str]:
        """Side of the crop as a share of the shorter side, and the interpolation."""
        if self.predictor.view is None:
            return clean_share(self.model.resolution), "bicubic"
        published = self._published()
        return float(published["crop_pct"]), str(published["interpolation"])

    def _steps(self, graph: bool) -> list[str]:
        """What is done with an image, in sentences."""
        side, share = self.model.resolution, clean_share(self.model.resolution)
        if self.raw_images:
            return [f"{_DECODE} The graph does the rest; images of one batch have the same size."]
        if self.predictor.view is not None:
            view = [f"Apply timm.data.create_transform(**{self._published()}, normalize=False)."]
        else:
            view = [
                f"Cut out the centred square with a side of round({share!r} * min(H, W)) pixels, at least 1."
                " A half is rounded to the even number. Its first row is (H - side) // 2, and its first"
                f" column is (W - side) // 2. An image of {side}x{side} pixels is not cut.",
                f"Resize it to {side}x{side} as Pillow's resize with BICUBIC does (antialiased, a = -0.5).",
            ]
        outside = ["Divide by 255, subtract `mean` and divide by `std`.", "softmax(logits / temperature)."]
        return [_DECODE, *view, *([] if graph else outside)]

    def _published(self) -> dict[str, Any]:
        net: Any = self.model.net
        config: dict[str, Any] = resolve_data_config(pretrained_cfg=net.pretrained_cfg, use_test_size=True)
        return config | {"input_size": (3, self.model.resolution, self.model.resolution)}

    def timm_config(self) -> dict[str, Any]:
        """`pretrained_cfg` with which timm prepares images as this package does, and names the classes."""
        model, net = self.model, self.model.net
        cfg: dict[str, Any] = filter_pretrained_cfg(net.pretrained_cfg, remove_source=True)
        cfg |= {"architecture": model.name.split(".")[0], "num_classes": model.num_classes}
        if self.predictor.classes:
            cfg["label_names"] = list(self.predictor.classes)
        for name in ("test_input_size", "test_crop_pct", "test_pool_size", "min_input_size", "label_offset"):
            cfg.pop(name, None)
        if self.predictor.view is not None:  # published weights, with a view of their own
            return cfg | self._published()
        side, share = model.resolution, clean_share(model.resolution)
        # timm rounds side / crop_pct down. Without `nextafter`, 3 of 1,000 sides would lose a pixel.
        crop = share if share == 1 else math.nextafter(share, 0)
        view = {"input_size": (3, side, side), "crop_pct": crop, "crop_mode": "center", "pool_size": None}
        return cfg | view | {"interpolation": "bicubic"}

    def timm_arguments(self) -> dict[str, Any]:
        """Arguments for timm.create_model, besides the name, the file and the configuration."""
        model = self.model
        arguments: dict[str, Any] = {"num_classes": model.num_classes, **model.options}
        cfg = timm.get_pretrained_cfg(model.name)
        if cfg is not None and cfg.fixed_input_size:
            # The shapes of such a network, for example a vision transformer, depend on the image size.
            arguments["img_size"] = model.resolution
        return arguments


def as_text(description: dict[str, Any]) -> dict[str, str]:
    """The description as metadata of a file: values that are not plain strings are written as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()}
