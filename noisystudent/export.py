"""A run's model for the world outside: safetensors that timm loads by name, checked after writing."""

from __future__ import annotations

from pathlib import Path

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
    _verify(predictor, out)
    arguments = [repr(predictor.model.name), f"num_classes={len(predictor.classes)}"]
    arguments += [f"{key}={value!r}" for key, value in predictor.model.options.items()]
    return f"timm.create_model({', '.join(arguments)}, checkpoint_path={str(out)!r})"


def _verify(predictor: Predictor, out: Path) -> None:
    """Logits of random images from the written file equal those of the run's model, bit for bit."""
    model, side = predictor.model, predictor.model.resolution
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_PROBES, 3, side, side), dtype=torch.uint8, generator=generator)
    arguments = dict(model.options)
    if model.net.pretrained_cfg.fixed_input_size:  # type: ignore[union-attr]
        arguments["img_size"] = side
    net = timm.create_model(model.name, num_classes=model.num_classes, checkpoint_path=str(out), **arguments)
    with torch.inference_mode():
        again = net.eval()((images / 255 - model.mean) / model.std)
    if not torch.equal(again, predictor(images)):
        raise RunError(f"{out} does not give the logits of the run's model; delete it")
