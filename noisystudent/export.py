"""A model for the world outside: safetensors that timm loads by name, or ONNX; checked after writing."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from noisystudent.errors import InputError, RunError
from noisystudent.inference import load_predictor
from noisystudent.models.registry import Classifier, save_weights
from noisystudent.rundir import atomic, check_out

_Writer = Callable[[Classifier, tuple[str, ...], Path], str]

_PROBES = 4
_TOLERANCE = 1e-3  # of the largest logit: ONNX Runtime adds in another order


def export(run: Path, out: Path, *, overwrite: bool = False) -> str:
    """Write `run`'s last model to `out`, and ask what was written for the logits of some images.

    Args:
        run: a run directory, a model folder or a .safetensors file.
        out: the file to write. .safetensors has timm's names; .onnx takes `images` (B, 3, S, S) uint8, gives
            `logits` (B, K) float32 for any B, and names the classes in its metadata.
        overwrite: it may take the place of another file.

    Returns:
        The line of Python that loads it.

    Raises:
        InputError: no model in `run`, as of `check_out`, or the extra `export` is not installed.
        RunError: what was written does not give the same logits.
    """
    writers: dict[str, _Writer] = {".safetensors": _safetensors, ".onnx": _onnx}
    check_out(out, overwrite=overwrite, suffixes=writers)
    predictor = load_predictor(run, device="cpu")
    if not isinstance(predictor.model, Classifier):
        raise InputError(f"{run} is exported already; give a run directory, a model folder or .safetensors")
    # as timm makes networks, so that their logits can be compared bit for bit
    model = predictor.model.to(memory_format=torch.contiguous_format)
    return writers[out.suffix.lower()](model, predictor.classes, out)


def _safetensors(model: Classifier, classes: tuple[str, ...], out: Path) -> str:
    save_weights(model, out, classes)
    arguments, images = _arguments(model), _probes(model)
    net = timm.create_model(model.name, checkpoint_path=str(out), **arguments)
    with torch.inference_mode():
        again = net.eval()((images / 255 - model.mean) / model.std)
        expected = model(images)
    if not torch.equal(again, expected):
        raise RunError(f"{out} does not give the logits of the run's model; delete it")
    said = [repr(model.name), *(f"{key}={value!r}" for key, value in arguments.items())]
    return f"timm.create_model({', '.join(said)}, checkpoint_path={str(out)!r})"


def _arguments(model: Classifier) -> dict[str, Any]:
    """What timm.create_model must be told beside the name and the file."""
    arguments: dict[str, Any] = {"num_classes": model.num_classes, **model.options}
    cfg = timm.get_pretrained_cfg(model.name)
    if cfg is not None and cfg.fixed_input_size:
        arguments["img_size"] = model.resolution
    return arguments


def _probes(model: Classifier) -> Tensor:
    """Random images (B, 3, S, S) uint8."""
    side = model.resolution
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (_PROBES, 3, side, side), dtype=torch.uint8, generator=generator)


def _onnx(model: Classifier, classes: tuple[str, ...], out: Path) -> str:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (what torch.onnx.export writes with)
    except ModuleNotFoundError as error:
        raise InputError(f"--out {out} needs {error.name}; pip install 'noisystudent[export]'") from error
    images = _probes(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's remarks on itself; what it wrote is checked below
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None  # with dynamo, and no file named
    program.model.metadata_props.update(
        architecture=model.name,
        resolution=str(model.resolution),
        classes=json.dumps(classes),
    )
    with atomic(out) as partial:
        program.save(str(partial))
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model(images)
    again = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    if not torch.allclose(again, expected, rtol=0, atol=_TOLERANCE * float(expected.abs().max())):
        raise RunError(f"{out} does not give the logits of the run's model; delete it")
    return f"onnxruntime.InferenceSession({str(out)!r}).run(['logits'], {{'images': images}})"
