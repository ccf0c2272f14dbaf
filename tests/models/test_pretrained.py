"""Published weights: what is downloaded is announced, what hangs is given up, offline sends nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from local_hub import Hub, serving, use_empty_cache
from tiny import Counted, Remembered, call, one_line

from noisystudent.config import ModelConfig
from noisystudent.console import Progress, stop_on_signal
from noisystudent.errors import InputError, Stopped
from noisystudent.models import Classifier, build_model, pretrained, save_weights

torch.set_num_threads(1)

NAME = "test_resnet"
PUBLISHED = ModelConfig(name=NAME, pretrained=True)
FALLBACK = ModelConfig(name=NAME, pretrained=True, pretrained_fallback=True)


def equal(a: Classifier, b: Classifier) -> bool:
    left, right = a.net.state_dict(), b.net.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of weights, as it is published."""
    file = tmp_path_factory.mktemp("published") / "model.safetensors"
    save_weights(build_model(ModelConfig(name=NAME), 1000, 32, seed=7), file)
    return file.read_bytes()


@pytest.fixture
def hub(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine instead of the real one, and empty caches."""
    use_empty_cache(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    with serving(content, "ok") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server


def test_a_download_is_announced_with_name_place_and_size_and_happens_once(hub: Hub, content: bytes) -> None:
    progress = Remembered()
    model = build_model(PUBLISHED, 5, 32, seed=1, progress=progress)
    (line,) = progress.lines
    assert NAME in line and hub.url in line and f"{len(content) / 1e6:.1f} MB" in line
    downloads = [request for request in hub.requests if request.startswith("GET")]
    assert len(downloads) == 1 and downloads[0].endswith("model.safetensors"), "weights, and nothing else"
    net: Any = model.net
    fresh: Any = build_model(ModelConfig(name=NAME), 5, 32, seed=1).net
    published: Any = build_model(ModelConfig(name=NAME), 1000, 32, seed=7).net
    assert torch.equal(net.conv1[0].weight, published.conv1[0].weight)
    assert torch.equal(net.fc.weight, fresh.fc.weight)  # 5 classes: the classifier is new

    count = len(hub.requests)
    again = build_model(PUBLISHED, 5, 32, seed=1, progress=progress)
    assert equal(again, model)
    assert len(hub.requests) == count and len(progress.lines) == 1, "from the cache, without a request"


def test_a_download_without_progress_is_announced_on_standard_error(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    build_model(PUBLISHED, 5, 32)
    assert hub.url in capsys.readouterr().err


def test_a_slow_download_shows_its_bytes_and_arrives(hub: Hub, content: bytes) -> None:
    hub.behaviour = "slow"
    progress = Counted()
    build_model(PUBLISHED, 5, 32, progress=progress)
    done = [done for _, done, _ in progress.calls]
    assert len(done) > 4 and done == sorted(set(done)) and done[-1] == len(content)
    assert {total for _, _, total in progress.calls} == {len(content)}


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("hangs", "sent nothing new for"),
        ("stops", "sent nothing new for"),
        ("short", "sent nothing new for"),  # each new attempt brings the same half
        ("resets", "reset"),
        ("404", "404"),
        ("500", "sent nothing new for"),  # the client repeats the request for half a minute
    ],
)
def test_a_bad_hub_is_given_up_with_the_next_step(
    hub: Hub, behaviour: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "nothing" in reason:
        monkeypatch.setattr(pretrained, "SILENT_SECONDS", 4.0)
    hub.behaviour = behaviour
    with pytest.raises(
        InputError, match=rf"{NAME} are not available: {hub.url}.*{reason}.*model.pretrained_fallback"
    ):
        build_model(PUBLISHED, 5, 32, progress=Progress())
    left = [
        path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".incomplete", ".safetensors")
    ]
    assert left == [], "no part of a file stays"


def test_no_server_is_no_hang_and_may_fall_back_to_random_weights(hub: Hub) -> None:
    hub.shutdown()
    hub.server_close()
    progress = Remembered()
    model = build_model(FALLBACK, 5, 32, seed=3, progress=progress)
    (line,) = progress.lines
    assert "refused" in line and line.endswith("starting from random weights")
    assert equal(model, build_model(ModelConfig(name=NAME), 5, 32, seed=3))
    assert equal(build_model(FALLBACK, 5, 32, seed=3, pretrained=False, progress=progress), model)
    assert len(progress.lines) == 1, "weights that are loaded later are not downloaded"


@pytest.mark.parametrize("behaviour", ["hangs", "stops"])
def test_a_signal_ends_a_download_that_hangs(hub: Hub, behaviour: str) -> None:
    hub.behaviour = behaviour
    progress = Progress()

    def interrupt() -> None:
        while len(hub.requests) < 2:
            hub.closing.wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Stopped, match="SIGINT"), stop_on_signal(progress):
        build_model(PUBLISHED, 5, 32, progress=progress)
    thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to find the process of the download")
@pytest.mark.slow
def test_a_download_does_not_outlive_a_killed_parent(hub: Hub) -> None:
    hub.behaviour = "stops"
    code = (
        "from noisystudent.models import build_model; from noisystudent.config import ModelConfig;"
        f"build_model(ModelConfig(name='{NAME}', pretrained=True), 5, 32)"
    )
    environment = os.environ | {"HF_ENDPOINT": hub.url}
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, env=environment) as parent:
        assert parent.stderr is not None
        assert b"downloading" in parent.stderr.readline()
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        parent.kill()
        parent.wait()
    while Path(f"/proc/{child}").exists():  # a child that stays is a test that does not end
        hub.closing.wait(0.01)


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_offline_sends_nothing_and_names_the_next_step(
    hub: Hub, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "" if how == "flag" else "1")
    flags = ["--offline"] if how == "flag" else []
    assert call("evaluate", NAME, *flags, "--data", "absent") == 2
    line = one_line(capsys)
    assert NAME in line and "--offline" in line and "--checkpoint" in line
    assert hub.requests == []


def test_offline_uses_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(PUBLISHED, 5, 32, seed=1, progress=Progress())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert equal(build_model(PUBLISHED, 5, 32, seed=1), model)


def test_weights_at_a_url_are_downloaded_once_and_where_timm_looks(hub: Hub, tmp_path: Path) -> None:
    cfg = timm.get_pretrained_cfg(NAME)
    assert cfg is not None
    elsewhere = {"hf_hub_id": None, "url": f"{hub.url}/{NAME}.safetensors"}
    with pytest.MonkeyPatch.context() as patch:
        for field, value in elsewhere.items():
            patch.setattr(cfg, field, value)
        patch.setattr(timm, "get_pretrained_cfg", lambda _name: cfg)
        progress = Remembered()
        source = pretrained.pretrained_source(NAME, progress)
        file = tmp_path / "torch" / "checkpoints" / f"{NAME}.safetensors"
        assert source["pretrained_cfg_overlay"] == {"file": str(file)} and file.read_bytes() == hub.content
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        assert f"{hub.url}/{NAME}.safetensors" in progress.lines[0]
        count = len(hub.requests)
        assert pretrained.pretrained_source(NAME, progress) == source and len(hub.requests) == count


def test_weights_never_published_are_named() -> None:
    with pytest.raises(InputError, match="wrn28_2 are not available: none were published"):
        build_model(ModelConfig(name="wrn28_2", pretrained=True), 5, 32)


def test_a_damaged_file_in_the_cache_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.content = b"no weights at all"
    with pytest.raises(InputError, match=r"model\.safetensors is damaged .*; delete it"):
        build_model(PUBLISHED, 5, 32, progress=Progress())
