"""The formats of exported models: how a file is written, and how its own runtime loads it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from noisystudent.errors import InputError, require
from noisystudent.inference.content import Content, as_text
from noisystudent.models.weights import save_weights
from noisystudent.records import Predict
from noisystudent.run.described import DESCRIPTION
from noisystudent.run.files import write_json
from noisystudent.run.rundir import WEIGHT_FILES

_EXTRA_FILE = "description.json"  # in a .pt2 file
_OPENVINO = {"INFERENCE_PRECISION_HINT": "f32"}  # by default it computes in bf16 where the processor can


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of exported models.

    Attributes:
        suffix: suffix of the file; "" if it is a folder.
        write: (content, path) -> None, writes it.
        load: (path, content) -> function from images to logits, computed from the file by the runtime of the
            format. Of the content it reads only what the user of the file has to give, too.
        line: (path, content) -> a line of Python that loads the file.
        modules: packages that it needs besides those of this package, and
        extra: the extra with which they are installed.
        beside: suffixes of other files that are written, besides the description.
        graph: True if the file holds the graph; False if it holds the weights alone.
        tolerance: allowed difference of the logits, as a share of the largest.
    """

    suffix: str
    write: Callable[[Content, Path], None]
    load: Callable[[Path, Content], Predict]
    line: Callable[[Path, Content], str]
    modules: tuple[str, ...] = ()
    extra: str = "export"
    beside: tuple[str, ...] = ()
    graph: bool = True
    tolerance: float = 1e-3  # runtimes sum in another order


# --- the weights, for timm ---


def _write_weights(content: Content, path: Path) -> None:
    """Write a .safetensors file.

    Raises:
        InputError: the head is an `Mlp`, which timm cannot build.
    """
    head = content.model.head_kind
    if head != "linear":
        raise InputError(f"--out is {path.name}, but timm has no head {head}; give a file that ends in .onnx")
    more = as_text(content.description(graph=False)) | {"pretrained_cfg": json.dumps(content.timm_config())}
    save_weights(content.model, path, content.predictor.classes, more)


def _load_weights(path: Path, content: Content) -> Predict:
    cfg, arguments = content.timm_config(), content.timm_arguments()
    name = content.model.name
    return _normalized(
        timm.create_model(name, pretrained_cfg=cfg, checkpoint_path=str(path), **arguments), content
    )


def _weights_line(path: Path, content: Content) -> str:
    arguments = [repr(content.model.name), "pretrained_cfg=cfg", "checkpoint_path=file"]
    arguments += [f"{key}={value!r}" for key, value in content.timm_arguments().items()]
    return (
        f"{_imports(content, 'json', 'safetensors')}; file = {str(path)!r};"
        " cfg = json.loads(safetensors.safe_open(file, 'pt').metadata()['pretrained_cfg']);"
        f" model = timm.create_model({', '.join(arguments)}).eval(); {_transform(content)}"
    )


def _write_timm(content: Content, path: Path) -> None:
    """Write a folder in the layout of the Hugging Face hub."""
    path.mkdir()
    _write_weights(content, path / WEIGHT_FILES[0])
    net: Any = content.model.net
    cfg, arguments = content.timm_config(), content.timm_arguments()
    config = {key: cfg.pop(key) for key in ("architecture", "num_classes")} | {
        "num_features": net.num_features
    }
    names = {"label_names": cfg.pop("label_names")} if "label_names" in cfg else {}
    more = {key: value for key, value in arguments.items() if key != "num_classes"}
    write_json(path / DESCRIPTION, config | names | {"model_args": more, "pretrained_cfg": cfg})


def _load_timm(path: Path, content: Content) -> Predict:
    return _normalized(timm.create_model(f"local-dir:{path}", pretrained=True), content)


def _timm_line(path: Path, content: Content) -> str:
    return (
        f"{_imports(content)}; model = timm.create_model({f'local-dir:{path}'!r}, pretrained=True).eval();"
        f" {_transform(content)}"
    )


def _normalized(net: Any, content: Content) -> Predict:
    net.eval()
    return lambda images: net((images / 255 - content.model.mean) / content.model.std)


def _imports(content: Content, *packages: str) -> str:
    # The networks of this package are known to timm once they are imported.
    module = timm.models.model_entrypoint(content.model.name.split(".")[0]).__module__
    own = ["noisystudent.models"] if module.startswith("noisystudent.") else []
    return f"import {', '.join(sorted([*packages, *own, 'timm']))}"


def _transform(content: Content) -> str:
    temperature = content.predictor.temperature
    line = "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
    return line + (
        "" if temperature == 1 else f"; temperature = {temperature}  # softmax(logits / temperature)"
    )


# --- the graph ---


def _example(content: Content) -> tuple[tuple[Tensor], tuple[dict[int, Any]]]:
    """Images from which the graph is made, and their axes of any size."""
    side, batch = content.model.resolution, torch.export.Dim("batch")
    if not content.raw_images:
        return (torch.zeros((2, 3, side, side), dtype=torch.uint8),), ({0: batch},)
    sizes = {0: batch, 1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    return (torch.zeros((2, side + 3, side + 5, 3), dtype=torch.uint8),), (sizes,)


def _write_onnx(content: Content, path: Path) -> None:
    """Write an .onnx file.

    Raises:
        InputError: torch is too old: the exporter of 2.6 fails with the onnxscript of the extra.
    """
    require(
        torch.__version__ >= "2.11",  # compared as versions, not as text
        f"--out is {path.name}, which needs torch 2.11 or newer, and {torch.__version__} is installed;"
        " install a newer one, or give a file that ends in .safetensors or .pt2",
    )
    images, dynamic = _example(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own code; the file is checked
        program = torch.onnx.export(
            content.graph,
            images,
            dynamo=True,
            dynamic_shapes=dynamic,
            input_names=["images"],
            output_names=["logits", "probs"],
            verbose=False,
        )
    assert program is not None  # it is None only without dynamo
    program.model.metadata_props.update(as_text(content.description()))
    program.save(str(path))


def _load_onnx(path: Path, _content: Content) -> Predict:
    import onnxruntime  # here, because it belongs to the optional extra `export`

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _onnx_line(path: Path, _content: Content) -> str:
    return f"onnxruntime.InferenceSession({str(path)!r}).run(['probs'], {{'images': images}})"


def _write_program(content: Content, path: Path) -> None:
    images, dynamic = _example(content)
    program = torch.export.export(content.graph, images, dynamic_shapes=dynamic)
    torch.export.save(program, path, extra_files={_EXTRA_FILE: json.dumps(content.description())})


def _load_program(path: Path, _content: Content) -> Predict:
    program = torch.export.load(path).module()
    return lambda images: program(images)[0]


def _program_line(path: Path, _content: Content) -> str:
    return f"import torch; logits, probs = torch.export.load({str(path)!r}).module()(images)"


def _write_openvino(content: Content, path: Path) -> None:
    import openvino

    onnx = path.with_suffix(".onnx")
    _write_onnx(content, onnx)
    model = openvino.convert_model(onnx)
    for key, value in as_text(content.description()).items():
        model.set_rt_info(value, ["noisystudent", key])
    # Weights in 16 bits, which is the default, would change the logits by about 0.1 %.
    openvino.save_model(model, path, compress_to_fp16=False)
    onnx.unlink()


def _load_openvino(path: Path, _content: Content) -> Predict:
    import openvino

    model = openvino.compile_model(path, "CPU", _OPENVINO)
    return lambda images: torch.from_numpy(np.array(model(images.numpy())["logits"]))


def _openvino_line(path: Path, _content: Content) -> str:
    return f"import openvino; openvino.compile_model({str(path)!r}, 'CPU', {_OPENVINO})(images)['probs']"


FORMATS: dict[str, Format] = {
    "safetensors": Format(
        suffix=".safetensors",
        write=_write_weights,
        load=_load_weights,
        line=_weights_line,
        graph=False,
        tolerance=0.0,
    ),
    "timm": Format(
        suffix="",
        write=_write_timm,
        load=_load_timm,
        line=_timm_line,
        graph=False,
        tolerance=0.0,
    ),
    "onnx": Format(
        suffix=".onnx",
        write=_write_onnx,
        load=_load_onnx,
        line=_onnx_line,
        modules=("onnxruntime", "onnxscript"),
    ),
    "torch-export": Format(suffix=".pt2", write=_write_program, load=_load_program, line=_program_line),
    "openvino": Format(
        suffix=".xml",
        write=_write_openvino,
        load=_load_openvino,
        line=_openvino_line,
        modules=("openvino", "onnxscript"),
        extra="openvino",
        beside=(".bin",),
    ),
}
"""Formats by the name that --format takes."""
