"""Which model a name or a path means, and the line if there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from noisystudent.errors import InputError
from noisystudent.inference.load import is_published, load_predictor


def test_the_case_of_the_ending_has_no_meaning(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    lines = set()
    for ending in ("onnx", "ONNX"):
        (tmp_path / f"own.{ending}").write_bytes(b"garbage")
        with pytest.raises(InputError, match="is not a readable ONNX file") as caught:
            load_predictor(tmp_path / f"own.{ending}")
        lines.add(str(caught.value).replace("own.ONNX", "own.onnx"))
    assert len(lines) == 1


@pytest.mark.parametrize("ending", ["safetensors", "SAFETENSORS", "onnx", "pth"])
def test_a_name_that_ends_like_a_file_is_a_path(ending: str) -> None:
    assert is_published("resnet18") and is_published("resnet18.a1_in1k")
    assert not is_published(f"resnet18.{ending}")
    with pytest.raises(InputError, match=rf"^resnet18\.{ending}: no such file; give a"):
        load_predictor(f"resnet18.{ending}", "cpu")


def test_a_path_gets_no_hint_at_a_name() -> None:
    with pytest.raises(InputError, match=r"did you mean 'resnet50'\?$"):
        load_predictor("resnet_50", "cpu")
    with pytest.raises(InputError, match=r"or the name of a timm model$"):
        load_predictor("runs/resnet_50", "cpu")


@pytest.mark.parametrize("size", [-5, 0])
def test_a_size_below_one_is_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"--eval-size is {size}; it must be at least 1"):
        load_predictor("resnet8_16", "cpu", size=size)
