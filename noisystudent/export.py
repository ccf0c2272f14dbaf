"""A run's model for the world outside: safetensors that timm loads by name, checked after writing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from noisystudent.errors import InputError, RunError
from noisystudent.inference import Predictor, load_predictor
from noisystudent.models.registry import save_weights

_PROBES = 4


def export(run: Path, out: Path) -> str:
    """Write the weights of `run`'s last model to `out` and read them back the way a user of timm would.

    Args:
        run: a run directory, a model folder or a .safetensors file.
        out: the file to write, ending in .safetensors.

    Returns:
        The line of Python that loads it.

    Raises:
        InputError: no model in `run`, or another ending.
        RunError: what was written does not give the same logits.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"--out is {out}; the file must end in .safetensors")
    predictor = load_predictor(run, device="cpu")
    save_weights(predictor.model, out, predictor.classes)
    arguments = _arguments(predictor)
    _verify(predictor, arguments, out)
    said = [repr(predictor.model.name), *(f"{key}={value!r}" for key, value in arguments.items())]
    return f"timm.create_model({', '.join(said)}, checkpoint_path={str(out)!r})"


def _arguments(predictor: Predictor) -> dict[str, Any]:
    """What timm.create_model must be told beside the name and the file."""
    model = predictor.model
    arguments: dict[str, Any] = {"num_classes": model.num_classes, **model.options}
    cfg = timm.get_pretrained_cfg(model.name)
    if cfg is not None and cfg.fixed_input_size:
        arguments["img_size"] = model.resolution
    return arguments


def _verify(predictor: Predictor, arguments: dict[str, Any], out: Path) -> None:
    """Logits of random images from the written file equal those of the run's model, bit for bit."""
    model, side = predictor.model, predictor.model.resolution
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_PROBES, 3, side, side), dtype=torch.uint8, generator=generator)
    net = timm.create_model(model.name, checkpoint_path=str(out), **arguments)
    with torch.inference_mode():
        again = net.eval()((images / 255 - model.mean) / model.std)
    if not torch.equal(again, predictor(images)):
        raise RunError(f"{out} does not give the logits of the run's model; delete it")
