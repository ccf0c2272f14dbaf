"""Export a model as a safetensors file that timm can load, or as ONNX, and check the written file."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import filter_pretrained_cfg
from torch import Tensor, nn

from noisystudent.data.decode import clean_share
from noisystudent.errors import InputError, RunError
from noisystudent.inference.load import load_predictor
from noisystudent.inference.predictor import Predictor
from noisystudent.models.classifier import TEMPERATURE, Classifier, save_weights
from noisystudent.run.files import atomic, check_out

_Writer = Callable[[Predictor, Classifier, Path], str]
"""(predictor, its model, file) -> line of Python that loads the file."""

_PROBES = 4  # random images on which the logits are compared
_TOLERANCE = 1e-3  # share of the largest logit; ONNX Runtime computes sums in another order


def export(run: Path, out: Path, *, overwrite: bool = False) -> str:
    """Write a model to `out`, then load the file and compare its logits on random images.

    Args:
        run: a run directory, a model folder or a .safetensors file.
        out: the file to write. A .safetensors file has timm's parameter names, and timm's `pretrained_cfg` in
            its metadata: how images are prepared, and the names of the classes. An .onnx file takes `images`
            (B, 3, S, S) uint8 for any B, returns `logits` and `probs` (B, K) float32, and has the class names
            in its metadata. `probs` is softmax(logits / T) with the temperature T that was fitted on val.
            timm knows no temperature: it is in the metadata, and in the returned line if it is not 1.
        overwrite: replaces an existing file.

    Returns:
        A line of Python that loads the file, and for timm also makes the transform of its images.

    Raises:
        InputError: no model in `run`, as in `check_out`, or the extra `export` is not installed.
        RunError: the written file gives other logits than the model.
    """
    writers: dict[str, _Writer] = {".safetensors": _safetensors, ".onnx": _onnx}
    check_out(out, overwrite=overwrite, suffixes=writers)
    predictor = load_predictor(run, device="cpu")
    if not isinstance(predictor.model, Classifier):
        raise InputError(f"{run} is exported already; give a run directory, a model folder or .safetensors")
    # The memory format in which timm creates networks, so that the logits can be compared bit by bit.
    model = predictor.model.to(memory_format=torch.contiguous_format)
    return writers[out.suffix.lower()](predictor, model, out)


def _safetensors(predictor: Predictor, model: Classifier, out: Path) -> str:
    """Write a .safetensors file, check it through timm, and return a line of Python that loads it.

    Raises:
        InputError: the head is an `Mlp`, which timm cannot build.
    """
    if model.head_kind != "linear":
        raise InputError(
            f"--out is {out}, but timm has no head {model.head_kind}; give a file that ends in .onnx"
        )
    cfg = _timm_config(predictor, model)
    temperature = predictor.temperature
    more = {"pretrained_cfg": json.dumps(cfg), TEMPERATURE: str(temperature)}
    save_weights(model, out, predictor.classes, more)
    arguments, images = _arguments(model), _probes(model)
    net = timm.create_model(model.name, pretrained_cfg=cfg, checkpoint_path=str(out), **arguments)
    with torch.inference_mode():
        logits = net.eval()((images / 255 - model.mean) / model.std)
        expected = model(images)
    if not torch.equal(logits, expected):
        raise RunError(f"{out} does not give the same logits as the model of the run; delete this file")
    # The networks of this package are known to timm once they are imported.
    own = timm.models.model_entrypoint(model.name.split(".")[0]).__module__.startswith("noisystudent.")
    packages = ["json", *(["noisystudent.models"] if own else []), "safetensors", "timm"]
    written = [f"{model.name!r}", "pretrained_cfg=cfg", "checkpoint_path=file"]
    written += [f"{key}={value!r}" for key, value in arguments.items()]
    return (
        f"import {', '.join(packages)}; file = {str(out)!r};"
        " cfg = json.loads(safetensors.safe_open(file, 'pt').metadata()['pretrained_cfg']);"
        f" model = timm.create_model({', '.join(written)}).eval();"
        " transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
        + ("" if temperature == 1 else f"; temperature = {temperature}  # softmax(logits / temperature)")
    )


def _timm_config(predictor: Predictor, model: Classifier) -> dict[str, Any]:
    """The `pretrained_cfg` with which timm prepares images as this package does, and names the classes."""
    net: Any = model.net
    cfg: dict[str, Any] = filter_pretrained_cfg(net.pretrained_cfg, remove_source=True)
    cfg |= {"architecture": model.name.split(".")[0], "num_classes": model.num_classes}
    if predictor.classes:
        cfg["label_names"] = list(predictor.classes)
    if predictor.view is not None:  # published weights, with a view of their own
        return cfg
    for name in ("test_input_size", "test_crop_pct", "test_pool_size", "min_input_size", "label_offset"):
        cfg.pop(name, None)
    side, share = model.resolution, clean_share(model.resolution)
    # timm rounds side / crop_pct down. Without `nextafter`, 3 of 1,000 sides would lose a pixel.
    crop = share if share == 1 else math.nextafter(share, 0)
    view = {"input_size": (3, side, side), "crop_pct": crop, "crop_mode": "center", "pool_size": None}
    return cfg | view | {"interpolation": "bicubic"}


def _arguments(model: Classifier) -> dict[str, Any]:
    """Arguments for timm.create_model, besides the name, the file and the configuration."""
    arguments: dict[str, Any] = {"num_classes": model.num_classes, **model.options}
    cfg = timm.get_pretrained_cfg(model.name)
    if cfg is not None and cfg.fixed_input_size:
        # The shapes of such a network, for example a vision transformer, depend on the image size.
        arguments["img_size"] = model.resolution
    return arguments


def _probes(model: Classifier) -> Tensor:
    """Random images (B, 3, S, S) uint8."""
    side = model.resolution
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (_PROBES, 3, side, side), dtype=torch.uint8, generator=generator)


class _WithProbs(nn.Module):
    """Images (B, 3, S, S) uint8 -> logits (B, K), and softmax(logits / temperature) (B, K)."""

    def __init__(self, model: Classifier, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images)
        return logits, torch.softmax(logits / self.temperature, dim=1)


def _onnx(predictor: Predictor, model: Classifier, out: Path) -> str:
    """Write an .onnx file, check it with ONNX Runtime, and return a line of Python that runs it."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx.export needs it)
    except ModuleNotFoundError as error:
        raise InputError(f"--out {out} needs {error.name}; pip install 'noisystudent[export]'") from error
    images, whole = _probes(model), _WithProbs(model, predictor.temperature).eval()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # warnings of the exporter about its own code; the file is checked below
        program = torch.onnx.export(
            whole,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits", "probs"],
            verbose=False,
        )
    assert program is not None  # it is None only without dynamo
    program.model.metadata_props.update(
        architecture=model.name,
        resolution=str(model.resolution),
        classes=json.dumps(predictor.classes),
        temperature=str(predictor.temperature),
    )
    with atomic(out) as partial:
        program.save(str(partial))
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = whole(images)
    written = session.run(["logits", "probs"], {"images": images.numpy()})
    for ours, theirs in zip(expected, map(torch.from_numpy, written), strict=True):
        if not torch.allclose(theirs, ours, rtol=0, atol=_TOLERANCE * float(ours.abs().max())):
            raise RunError(f"{out} does not give the same logits as the model of the run; delete this file")
    return f"onnxruntime.InferenceSession({str(out)!r}).run(['probs'], {{'images': images}})"
