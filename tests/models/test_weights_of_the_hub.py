"""Initial weights of repositories and tags: announced with size and licence, and nothing is sent offline."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from huggingface_hub import constants
from initial_weights import config, equal, refuse_network, state
from local_hub import Hub, serving, use_empty_cache
from safetensors.torch import save_file
from tiny import Capture, Remembered

from noisystudent.config import ModelConfig
from noisystudent.console import Progress
from noisystudent.errors import InputError
from noisystudent.models import Classifier, build_model, pretrained

torch.set_num_threads(1)

CLASSES = 7


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine instead of the real one, with test_vit for 7 classes, and empty caches."""
    file = tmp_path / "published.safetensors"
    save_file(state(build_model(ModelConfig(name="test_vit"), CLASSES, 160, seed=7)), file, {"format": "pt"})
    use_empty_cache(monkeypatch, tmp_path / "cache")
    with serving(file.read_bytes(), "ok") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


@pytest.mark.parametrize(
    ("description", "license_"),
    [
        (None, "unknown"),
        ({"license": "cc-by-nc-4.0"}, "cc-by-nc-4.0"),
        ({"pretrained_cfg": {"license": "mit"}}, "mit"),
    ],
)
def test_a_repository_is_announced_with_place_size_and_licence(
    hub: Hub, description: dict[str, Any] | None, license_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if description is not None:
        hub.description = json.dumps(description | {"architecture": "test_vit"}).encode()
    progress = Remembered()
    source = config("test_vit", "hf-hub:somebody/something@v2")
    model = build_model(source, CLASSES, 160, progress=progress)
    line, note = progress.lines
    size = f"{len(hub.content) / 1e6:.1f} MB"
    place = f"hf-hub:somebody/something@v2 from {hub.url}/somebody/something"
    assert line == f"downloading {place} ({size}, licence {license_})"
    assert note == f"mean and std of {source.pretrained} are not known; those of test_vit are used"
    assert any("/somebody/something/resolve/v2/model.safetensors" in request for request in hub.requests)
    refuse_network(monkeypatch)
    again = build_model(source, CLASSES, 160, progress=progress)
    assert equal(state(again), state(model)) and len(progress.lines) == 2


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_network(monkeypatch)


def test_a_repository_of_another_network_is_refused(hub: Hub) -> None:
    hub.description = json.dumps({"architecture": "test_vit2"}).encode()
    with pytest.raises(InputError, match="contains weights of test_vit2; the model is test_vit"):
        build_model(config("test_vit", "hf-hub:somebody/something"), CLASSES, 160, progress=Progress())


MEAN, STD = (0.1, 0.2, 0.3), (0.9, 0.8, 0.7)
TAGGED = "hf-hub:timm/test_vit.r160_in1k"  # the repository that `pretrained: true` takes weights from


@pytest.fixture
def bare(hub: Hub) -> Hub:
    """The hub describes its network, but the cache has the weights alone, as after another program."""
    hub.description = json.dumps({"pretrained_cfg": {"mean": MEAN, "std": STD}}).encode()
    build_model(config("test_vit", True), CLASSES, 160, progress=Progress())
    hub.requests.clear()
    return hub


def normalization(model: Classifier) -> list[float]:
    return torch.cat([model.mean, model.std]).flatten().tolist()


def test_cached_weights_without_their_description_get_it_alone(
    bare: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Remembered()
    model = build_model(config("test_vit", TAGGED), CLASSES, 160, progress=progress)
    assert normalization(model) == pytest.approx([*MEAN, *STD])
    (line,) = progress.lines
    assert line.startswith(f"downloading config.json of {TAGGED} from {bare.url}/timm/test_vit.r160_in1k (")
    # Of the commit of the weights: the branch may have moved on.
    place = f"/timm/test_vit.r160_in1k/resolve/{'0' * 40}/config.json"
    assert [request for request in bare.requests if "GET" in request] == [f"GET {place}"]
    refuse_network(monkeypatch)
    again = build_model(config("test_vit", TAGGED), CLASSES, 160, progress=progress)
    assert normalization(again) == normalization(model) and len(progress.lines) == 1


@pytest.mark.parametrize("reason", ["offline", "broken"])
def test_without_their_description_cached_weights_are_used_with_a_line(
    bare: Hub, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        refuse_network(monkeypatch)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    progress, plain = Remembered(), build_model(ModelConfig(name="test_vit"), CLASSES, 160)
    for _ in range(2):  # of two networks of a run
        model = build_model(config("test_vit", TAGGED), CLASSES, 160, progress=progress)
        assert normalization(model) == normalization(plain)
    assert progress.lines == [f"mean and std of {TAGGED} are not known; those of test_vit are used"]


def test_published_weights_and_those_of_a_tag_are_announced_with_their_licence(hub: Hub) -> None:
    models = []
    for source in (True, "r160_in1k"):
        progress = Remembered()
        models.append(build_model(config("test_vit", source), 3, 160, progress=progress))
        if source is True:  # the tag is that of the same file, which is in the cache then
            assert (
                "timm/test_vit.r160_in1k" in progress.lines[0] and "licence apache-2.0)" in progress.lines[0]
            )
    assert equal(*map(state, models)) and sum("GET" in request for request in hub.requests) == 1


@pytest.mark.parametrize("source", [True, "r160_in1k", "hf-hub:somebody/something"])
@pytest.mark.parametrize("how", ["--offline", "HF_HUB_OFFLINE"])
@pytest.mark.usefixtures("no_network")
def test_offline_no_socket_is_opened(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, source: object, how: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if how == "HF_HUB_OFFLINE" else "")
    flags = ["--offline"] if how == "--offline" else []
    recipe = tiny.write_recipe(tmp_path / "tiny.yaml")
    words = ("train", recipe, "--labeled", images / "labeled", "--out", tmp_path / "run", *flags)
    given = ("--teacher.model.name", "test_vit", "--teacher.model.pretrained", str(source).lower())
    assert tiny.call(*words, *given) == 2
    assert (
        "is not in the cache, and --offline or HF_HUB_OFFLINE=1 forbids the download"
        in capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["silent", "hangs", "stops"])
def test_a_hub_that_is_silent_is_given_up_within_30_seconds(
    hub: Hub, behaviour: str, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    hub.behaviour = behaviour
    recipe, start = tiny.write_recipe(tmp_path / "tiny.yaml"), time.monotonic()
    words = ("train", recipe, "--labeled", images / "labeled", "--out", tmp_path / "run")
    given = ("--teacher.model.name", "test_vit", "--teacher.model.pretrained", "hf-hub:somebody/something")
    assert tiny.call(*words, *given) == 2
    assert time.monotonic() - start < 30 + 5  # besides, the images are read
    error = capsys.readouterr().err.splitlines()[-1]
    assert hub.url in error and "try again later, or set HF_ENDPOINT to another hub" in error


def test_the_time_limit_is_below_30_seconds() -> None:
    assert pretrained.SILENT_SECONDS + pretrained._END_SECONDS < 30
