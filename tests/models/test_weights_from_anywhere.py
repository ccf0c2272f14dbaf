"""Initial weights of files, tags and repositories: loaded as timm does, and never by accident."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Literal

import pytest
import timm
import tiny
import torch
from initial_weights import config, equal, refuse_network, state
from safetensors.torch import load_file, save_file
from tiny import Remembered
from torch import nn

from noisystudent.config import Config, FirstTeacherConfig, ModelConfig, StudentConfig
from noisystudent.errors import InputError
from noisystudent.inference.existing import fingerprints
from noisystudent.inference.load import load_predictor
from noisystudent.models import Classifier, build_model, save_weights
from noisystudent.run.inputs import inputs_of

torch.set_num_threads(1)

NAMES = ("test_vit", "test_convnext", "test_efficientnet")
CLASSES = 7


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_network(monkeypatch)


@pytest.fixture(scope="module", params=NAMES)
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Name of a network, and a folder with its weights for 7 classes in several forms."""
    folder = tmp_path_factory.mktemp("given")
    model = build_model(ModelConfig(name=request.param), CLASSES, 160, seed=7)
    save_weights(model, folder / "ours.safetensors", list("abcdefg"))
    save_file(state(model), folder / "plain.safetensors", {"format": "pt"})
    torch.save(state(model), folder / "plain.pth")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state(model).items()}}, folder / "ddp.pth"
    )
    return request.param, folder


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("file", ["ours.safetensors", "plain.safetensors", "plain.pth", "ddp.pth"])
@pytest.mark.parametrize("classes", [CLASSES, 3])
def test_a_file_is_loaded_as_timm_loads_it(given: tuple[str, Path], file: str, classes: int) -> None:
    name, folder = given
    progress = Remembered()
    model = build_model(config(name, folder / file), classes, 160, seed=1, progress=progress)
    overlay = {"file": str(folder / file), "num_classes": CLASSES}
    reference = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes)
    head = f"{reference.pretrained_cfg['classifier']}."
    fresh = state(build_model(ModelConfig(name=name), classes, 160, seed=1))
    expected = {
        k: fresh[k] if classes != CLASSES and k.startswith(head) else v for k, v in state(reference).items()
    }
    assert equal(state(model), expected)
    assert [file in line and "starts from random weights" in line for line in progress.lines] == [True] * (
        classes != CLASSES
    )


def test_position_embeddings_are_resized_as_by_timm(given: tuple[str, Path]) -> None:
    name, folder = given
    if name != "test_vit":
        return
    file = str(folder / "plain.pth")
    model = build_model(config(name, file), CLASSES, 64)
    overlay = {"file": file, "num_classes": CLASSES}
    reference = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=CLASSES, img_size=64
    )
    assert equal(state(model), state(reference))


@pytest.mark.usefixtures("no_network")
def test_weights_without_a_head_get_a_new_one(tmp_path: Path) -> None:
    backbone = timm.create_model("test_vit", num_classes=0)
    torch.save(state(backbone), tmp_path / "backbone.pth")
    model = build_model(config("test_vit", tmp_path / "backbone.pth"), 3, 160, seed=2)
    fresh = state(build_model(ModelConfig(name="test_vit"), 3, 160, seed=2))
    assert equal(state(model), state(backbone) | {key: fresh[key] for key in ("head.weight", "head.bias")})


def renamed(name: str, path: Path) -> Path:
    """The weights of another framework: the same tensors in the same order, under other names."""
    model = build_model(ModelConfig(name=name), CLASSES, 160, seed=7)
    torch.save({f"layer{number}": value for number, value in enumerate(state(model).values())}, path)
    return path


@pytest.mark.parametrize("classes", [CLASSES, 3])
def test_assignment_by_order_is_refused_unless_asked_for(tmp_path: Path, classes: int) -> None:
    path = renamed("test_efficientnet", tmp_path / "other.pth")
    # Both networks take the tensors, and compute different functions: one of them is wrong.
    for name in ("test_efficientnet", "test_efficientnet_gn"):
        with pytest.raises(InputError, match=r"other\.pth lacks 'conv_stem\.weight', so it is not of"):
            build_model(config(name, path), classes, 160)
    with pytest.raises(InputError, match=r"fit in their order: set model\.remap to order"):
        build_model(config("test_efficientnet", path), classes, 160)
    model = build_model(config("test_efficientnet", path, remap="order"), classes, 160, seed=1)
    expected = state(build_model(ModelConfig(name="test_efficientnet"), CLASSES, 160, seed=7))
    fresh = state(build_model(ModelConfig(name="test_efficientnet"), classes, 160, seed=1))
    head = {"classifier.weight", "classifier.bias"} if classes != CLASSES else set()
    assert equal(state(model), {key: fresh[key] if key in head else expected[key] for key in fresh})
    with pytest.raises(InputError, match=r"model\.remap is order, but .* does not fit test_convnext: it has"):
        build_model(config("test_convnext", path, remap="order"), classes, 160)
    # That format sorts them, so not even the own file fits.
    save_file(expected, tmp_path / "sorted.safetensors")
    with pytest.raises(InputError, match=r"is in order of names, so give a torch checkpoint$"):
        build_model(config("test_efficientnet", tmp_path / "sorted.safetensors", remap="order"), classes, 160)


def test_real_weights_of_another_framework_need_the_order(lite0_file: Path) -> None:
    for name in ("tf_efficientnet_lite0", "efficientnet_lite0"):
        with pytest.raises(InputError, match="because others fit, too"):
            build_model(config(name, lite0_file), 1000, 224)
    model = build_model(config("tf_efficientnet_lite0", lite0_file, remap="order"), 1000, 224)
    original = torch.load(lite0_file, weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(state(model).values(), original.values(), strict=True))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test_convnext", None, "contains weights of test_vit; the model is test_convnext"),
        ("test_vit", b"no weights", "is not a readable"),
        (
            "test_vit",
            {"head.weight": torch.zeros(3, 64)},
            "lacks 'cls_token', so it is not of test_vit; give weights",
        ),
    ],
)
def test_a_file_of_another_network_is_refused(
    tmp_path: Path, name: str, content: object, message: str
) -> None:
    path = tmp_path / "file.safetensors"
    if content is None:
        save_weights(build_model(ModelConfig(name="test_vit"), 3, 160), path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path = path.with_suffix(".pth")
        torch.save(content, path)
    with pytest.raises(InputError, match=message):
        build_model(config(name, path), 3, 160)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "code.pth")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        build_model(config("test_vit", tmp_path / "code.pth"), 3, 160)


def test_a_folder_of_timm_gives_its_normalisation_which_stays_with_the_weights(tmp_path: Path) -> None:
    source = build_model(ModelConfig(name="test_efficientnet"), CLASSES, 32, seed=7)
    folder = tmp_path / "timm"
    timm.models.save_for_hf(source.net, folder, data_config={"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)})
    model = build_model(config("test_efficientnet", folder), CLASSES, 32)
    assert equal(state(model), state(source))
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    save_weights(model, tmp_path / "trained.safetensors", list("abcdefg"))
    loaded = load_predictor(tmp_path / "trained.safetensors").models[0]
    assert isinstance(loaded, Classifier)
    assert torch.equal(loaded.std, model.std) and torch.equal(loaded.mean, model.mean)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(loaded(images), model.eval()(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="contains weights of test_efficientnet; the model is test_vit"):
        build_model(config("test_vit", folder), CLASSES, 160)


@pytest.mark.parametrize("name, differ", [("test_vit", False), ("mobilenetv4_conv_small", True)])
def test_unknown_mean_and_std_are_said_once_if_published_weights_differ_in_them(
    tmp_path: Path, name: str, differ: bool
) -> None:
    model, progress = build_model(ModelConfig(name=name), CLASSES, 160, seed=7), Remembered()
    torch.save(state(model), tmp_path / "plain.pth")
    save_weights(model, tmp_path / "ours.safetensors")
    for file in ("plain.pth", "plain.pth", "ours.safetensors"):
        build_model(config(name, tmp_path / file), CLASSES, 160, progress=progress)
    line = f"mean and std of {tmp_path / 'plain.pth'} are not known; those of {name} are used"
    assert progress.lines == [line] * differ


@pytest.mark.usefixtures("no_network")
def test_a_model_of_a_run_is_a_source_and_a_run_names_its_models(finished: Path) -> None:
    teacher = finished / "iteration-0" / "teacher"
    model = build_model(config("resnet8_16", teacher), 3, 16)
    assert equal(state(model), load_file(teacher / "model.safetensors"))
    with pytest.raises(InputError, match=r"has no weights; give one of its models, .*iteration-0/teacher, "):
        build_model(config("resnet8_16", finished), 3, 16)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "no/such/file.pth",
            "'no/such/file.pth', which is no file and no tag of test_vit, whose tags are r160_in1k;",
        ),
        ("r160", "'r160', which is no file and no tag of test_vit"),
        ("hf-hub:timm", "'hf-hub:timm'; hf-hub:<owner>/<name> is right"),
    ],
)
def test_a_source_that_is_none_is_refused_before_the_images(
    images: Path, tmp_path: Path, source: str, message: str
) -> None:
    fields = [("teacher.model.name", "test_vit"), ("teacher.model.pretrained", source)]
    with pytest.raises(InputError) as caught:
        tiny.run(tiny.config(images, *fields), tmp_path / "run")
    assert message in str(caught.value) and not (tmp_path / "run").exists()


def test_a_stage_depends_on_the_content_of_a_file_and_not_on_its_place(tmp_path: Path) -> None:
    for name, content in (("one", b"1"), ("two", b"1"), ("other", b"2")):
        (tmp_path / name).write_bytes(content)
    one, two, other = (inputs_of(config("test_vit", tmp_path / name)) for name in ("one", "two", "other"))
    assert one == two != other
    assert inputs_of(config("test_vit", True))["pretrained"] is True


def test_a_stage_depends_on_mean_and_std_beside_a_file_unless_it_names_them_itself(tmp_path: Path) -> None:
    own, plain = tmp_path / "own" / "model.safetensors", tmp_path / "plain" / "model.safetensors"
    model = build_model(ModelConfig(name="resnet8_16"), CLASSES, 16)
    for path in (own, plain):
        path.parent.mkdir()
    save_weights(model, own)
    save_file(state(model), plain, {"format": "pt"})
    digests: dict[Path, list[list[object]]] = {own: [], plain: []}
    described = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    for about in (None, {}, described, described | {"license": "mit"}, described | {"std": [1, 1, 1]}):
        for path, found in digests.items():
            if about is not None:
                path.with_name("config.json").write_text(json.dumps({"pretrained_cfg": about}))
            entry = FirstTeacherConfig(model_from=str(path), classes=("a",))
            existing = fingerprints(
                Config(teachers=(FirstTeacherConfig(), entry), students=(StudentConfig(),))
            )
            found.append([inputs_of(config("resnet8_16", path.parent)), existing])
    assert digests[own] == digests[own][:1] * 5
    none, empty, named, licensed, other = digests[plain]
    assert none == empty and named == licensed
    for one, another in combinations((none, named, other), 2):
        assert [left != right for left, right in zip(one, another, strict=True)] == [True, True]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind, classes", [("mlp", CLASSES), ("mlp", 3), ("linear", CLASSES)])
def test_a_network_with_an_mlp_is_loaded_and_its_head_only_into_an_equal_one(
    tmp_path: Path, name: str, kind: Literal["linear", "mlp"], classes: int
) -> None:
    given = build_model(ModelConfig(name=name, head="mlp"), CLASSES, 32, seed=7)
    save_weights(given, tmp_path / "mlp.safetensors")
    plain = ModelConfig(name=name, head=kind)
    settings, progress = replace(plain, pretrained=str(tmp_path / "mlp.safetensors")), Remembered()
    model = build_model(settings, classes, 32, seed=1, progress=progress)
    fresh, same = state(build_model(plain, classes, 32, seed=1)), (kind, classes) == ("mlp", CLASSES)
    head = f"{timm.get_pretrained_cfg(name).classifier}."
    expected = {key: fresh[key] if key.startswith(head) and not same else state(given)[key] for key in fresh}
    assert equal(state(model), expected)
    assert same == (not progress.lines) and all("random weights" in line for line in progress.lines)
