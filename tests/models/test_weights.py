"""Weights are equal after saving and loading, timm reads them, weights of another model are refused."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn

from noisystudent.config import ModelConfig
from noisystudent.errors import InputError
from noisystudent.models import Classifier, build_model, load_weights, save_weights
from noisystudent.models.weights import load_trunk, misfit

torch.set_num_threads(1)


def small(seed: int = 0, name: str = "resnet8_16", classes: int = 5, **changes: object) -> Classifier:
    return build_model(ModelConfig(name=name, **changes), classes, 32, seed=seed)  # type: ignore[arg-type]


def equal(a: Classifier, b: Classifier) -> bool:
    left, right = a.net.state_dict(), b.net.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("name", ["resnet8_16", "test_efficientnet", "test_convnext"])
def test_round_trip_and_timm_reads_it(tmp_path: Path, name: str) -> None:
    model, file = small(1, name).to(memory_format=torch.channels_last), tmp_path / "model.safetensors"
    model.noise.draw(0, 0, torch.ones(2, dtype=torch.bool))
    save_weights(model, file)
    other = small(2, name)
    assert not equal(model, other)
    load_weights(other, file)
    assert equal(model, other)
    reference = timm.create_model(name, num_classes=5, checkpoint_path=file)
    assert all(torch.equal(a, b) for a, b in zip(reference.parameters(), model.net.parameters(), strict=True))


@pytest.mark.parametrize("options", [{}, {"no_embed_class": True}, {"reg_tokens": 4}])
def test_position_embeddings_of_another_resolution_are_resampled_as_in_timm(
    tmp_path: Path, options: dict[str, object]
) -> None:
    config, file = ModelConfig(name="test_vit", options=options), tmp_path / "model.safetensors"
    model, larger, trunk = build_model(config, 5, 64, seed=1), *(build_model(config, 5, 96) for _ in range(2))
    save_weights(model, file)
    load_weights(larger, file)
    load_trunk(trunk, file)
    reference = checkpoint_filter_fn(model.net.state_dict(), larger.net)
    assert reference["pos_embed"].shape != model.net.state_dict()["pos_embed"].shape
    assert reference.keys() == larger.net.state_dict().keys()
    assert all(torch.equal(value, reference[key]) for key, value in larger.net.state_dict().items())
    assert torch.equal(trunk.net.state_dict()["pos_embed"], reference["pos_embed"])
    load_weights(model, file)
    assert all(
        torch.equal(value, reference[k]) for k, value in model.net.state_dict().items() if k != "pos_embed"
    )


Networks = list[tuple[str, dict[str, object]]]
BEIT: dict[str, object] = {"depth": 1, "embed_dim": 48, "num_heads": 3}
CONVERTED: Networks = [
    ("beit_base_patch16_224", BEIT),
    ("test_coatnet", {}),
    ("mvitv2_tiny", {}),
    ("test_vit", {}),
]
NOT_CONVERTED: Networks = [("levit_128s", {}), ("visformer_tiny", {})]


def two_sides(name: str, options: dict[str, object]) -> tuple[Classifier, Classifier]:
    config = ModelConfig(name=name, options=options, dropout=0.0, stochastic_depth=0.0)
    first, second = (build_model(config, 5, side, seed=side) for side in (64, 96))
    return first, second


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # timm's own
@pytest.mark.parametrize("name, options", CONVERTED)
def test_weights_are_loaded_at_another_resolution_as_published_ones_are(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    (model, larger), file = two_sides(name, options), tmp_path / "model.safetensors"
    save_weights(model, file)
    assert {key: value.shape for key, value in model.net.state_dict().items()} != {
        key: value.shape for key, value in larger.net.state_dict().items()
    }
    load_weights(larger, file)
    config = ModelConfig(name=name, options=options, dropout=0.0, stochastic_depth=0.0, pretrained=str(file))
    assert equal(larger, build_model(config, 5, 96))
    trunk = build_model(config, 5, 96, pretrained=False)
    load_trunk(trunk, file)
    same = trunk.net.state_dict().items()
    assert all(torch.equal(value, larger.net.state_dict()[key]) for key, value in same if "head" not in key)


@pytest.mark.parametrize("name, options", CONVERTED + NOT_CONVERTED)
def test_a_misfit_is_known_without_the_weights(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    (model, larger), file = two_sides(name, options), tmp_path / "model.safetensors"
    with torch.device("meta"):
        tensor = misfit(*two_sides(name, options))
    save_weights(model, file)
    if tensor is None:
        load_weights(larger, file)
    else:
        with pytest.raises(InputError, match=tensor):
            load_weights(larger, file)
    assert (tensor is None) == ((name, options) in CONVERTED)


def test_metadata_describes_the_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_weights(small(options={"global_pool": "max"}), file, classes=["a", "b", "c", "d", "é"])
    with safetensors.safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert (metadata["architecture"], metadata["num_classes"], metadata["resolution"]) == (
        "resnet8_16",
        "5",
        "32",
    )
    assert json.loads(metadata["classes"]) == ["a", "b", "c", "d", "é"]
    assert json.loads(metadata["options"]) == {"global_pool": "max"}
    assert json.loads(metadata["mean"]) == pytest.approx([0.4914, 0.4822, 0.4465])
    assert len(json.loads(metadata["std"])) == 3


def test_equal_weights_have_equal_bytes_in_every_process(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for file in files:  # the order of the metadata was random in each call
        save_weights(small(1, options={"global_pool": "max"}), file, classes=["ä", "b", "c", "d", "e"])
    assert len({file.read_bytes() for file in files}) == 1
    with safetensors.safe_open(files[0], framework="pt") as opened:
        keys = list(opened.metadata())
    assert "classes" in keys


def test_the_file_has_ordinary_permissions(tmp_path: Path) -> None:
    save_weights(small(), tmp_path / "model.safetensors")
    (tmp_path / "plain").touch()
    assert os.stat(tmp_path / "model.safetensors").st_mode == os.stat(tmp_path / "plain").st_mode


def test_torch_checkpoints_load(tmp_path: Path) -> None:
    model, other = small(1), small(2)
    torch.save({"state_dict": model.net.state_dict()}, tmp_path / "model.pt")
    load_weights(other, tmp_path / "model.pt")
    assert equal(model, other)


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("load", [load_weights, load_trunk])
def test_what_is_no_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[[Classifier, Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"absent\.safetensors is not a file"):
        load(small(), tmp_path / "absent.safetensors")
    for name in ("text.safetensors", "text.pt", "empty.pt", "empty.safetensors"):
        (tmp_path / name).write_text("hello" * name.startswith("text"))
        with pytest.raises(InputError, match=f"{name} is not a readable"):
            load(small(), tmp_path / name)
    torch.save({"fc.weight": Hostile()}, tmp_path / "hostile.pt")
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps(Hostile()))
    for name in ("hostile.pt", "hostile.pkl"):
        with pytest.raises(InputError, match=f"{name} is not a readable"):
            load(small(), tmp_path / name)
    assert not Path("executed").exists()
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    with pytest.raises(InputError, match=r"epoch\.pt does not contain a state_dict"):
        load(small(), tmp_path / "epoch.pt")


def test_weights_of_another_model_are_refused_and_change_nothing(tmp_path: Path) -> None:
    model, file = small(1), tmp_path / "model.safetensors"
    save_weights(small(2, classes=7), file)
    with pytest.raises(InputError, match=r"'fc.weight' of shape \(7, 64\).*5 classes.*needs \(5, 64\)"):
        load_weights(model, file)
    save_weights(small(2, "efficientnet_lite0"), file)  # tf_efficientnet_lite0 has the same names and shapes
    with pytest.raises(
        InputError, match="contains weights of efficientnet_lite0; the model is tf_efficientnet_lite0"
    ):
        load_weights(small(1, "tf_efficientnet_lite0"), file)
    state = small(2).net.state_dict()
    torch.save({key: value for key, value in state.items() if key != "fc.bias"}, tmp_path / "short.pt")
    torch.save(state | {"more": torch.zeros(1)}, tmp_path / "long.pt")
    with pytest.raises(InputError, match=r"lacks 'fc\.bias'"):
        load_weights(model, tmp_path / "short.pt")
    with pytest.raises(InputError, match="has 'more'"):
        load_weights(model, tmp_path / "long.pt")
    assert equal(model, small(1))
