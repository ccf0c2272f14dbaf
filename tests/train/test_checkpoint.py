from __future__ import annotations

import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Remembered
from torch import Tensor, nn

from noisystudent.config import TrainConfig
from noisystudent.errors import RunError
from noisystudent.train import checkpoint, journal
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.ema import Ema, decay_at
from noisystudent.train.optim import build_optimizer


def make_state(
    seed: int, optimizer: str = "sgd", width: int = 4, unused: bool = False, **options: Any
) -> TrainState:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 16, 2)
    )
    if unused:
        model[0].register_parameter("unused", nn.Parameter(torch.ones(2)))
    model.to(memory_format=torch.channels_last)
    config = TrainConfig(optimizer=optimizer, **options)  # type: ignore[arg-type]
    return TrainState(
        model, Ema(model), build_optimizer(model, config), window=torch.zeros(2), decay=torch.zeros(())
    )


def advance(state: TrainState, steps: int) -> TrainState:
    for _ in range(steps):
        draws = torch.Generator().manual_seed(state.step)
        images = torch.randn(4, 3, 6, 6, generator=draws).contiguous(memory_format=torch.channels_last)
        loss = state.model(images).square().mean()
        loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.ema.update(torch.tensor(decay_at(state.step, 0.9)))
        state.window += loss.detach()
        state.step += 1
    return state


def tensors(state: TrainState) -> dict[str, Tensor]:
    """All tensors that a training changes, read from the objects."""
    contents = {f"model.{key}": value for key, value in state.model.state_dict().items()}
    contents |= {f"ema.{key}": value for key, value in state.ema.module.state_dict().items()}
    for index, entry in state.optimizer.state_dict()["state"].items():
        contents |= {f"optimizer.{index}.{key}": value for key, value in entry.items()}
    return contents | {"window": state.window, "step": torch.tensor(state.step)}


def assert_same(one: TrainState, other: TrainState) -> None:
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
        assert value.stride() == right[name].stride(), name  # channels_last is kept
        assert value.dtype == right[name].dtype, name


def save(state: TrainState, folder: Path) -> None:
    checkpoint.write(checkpoint.contents(state), folder, f'{{"step": {state.step}}}\n'.encode())


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop_tf", "adamw"])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"unused": True}])
def test_a_loaded_training_is_and_goes_on_as_the_saved_one(
    tmp_path: Path, optimizer: str, options: dict[str, Any]
) -> None:
    state = advance(make_state(0, optimizer, **options), 3)
    save(state, tmp_path)
    loaded = make_state(1, optimizer, **options)
    checkpoint.load(loaded, tmp_path / "step-00000003")
    assert_same(state, loaded)
    assert state.optimizer.state_dict()["param_groups"] == loaded.optimizer.state_dict()["param_groups"]
    assert_same(advance(state, 2), advance(loaded, 2))


def test_two_snapshots_stay_and_leftovers_of_a_kill_are_neither_seen_nor_kept(tmp_path: Path) -> None:
    state, progress = advance(make_state(0), 2), Remembered()
    assert checkpoint.newest(tmp_path / "nothing", progress) is None
    save(state, tmp_path)
    torn = tmp_path / ".step-00000003.partial"
    torn.mkdir()
    (torn / "__0_0.distcp").write_bytes(b"half")
    assert checkpoint.newest(tmp_path, progress) == tmp_path / "step-00000002"
    save(advance(state, 10), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000002", "step-00000012"}
    save(advance(state, 1), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000012", "step-00000013"}
    newest = checkpoint.newest(tmp_path, progress)
    assert newest == tmp_path / "step-00000013" and progress.lines == []
    assert journal.read(checkpoint.journal(newest)) == [{"step": 13}]


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "metrics.jsonl", "checksums.json"])
@pytest.mark.parametrize("damage", ["flipped", "empty", "removed"])
def test_a_damaged_snapshot_is_put_aside_and_the_one_before_is_used(
    tmp_path: Path, name: str, damage: str
) -> None:
    folder, progress = tmp_path / "checkpoint", Remembered()
    state = advance(make_state(0), 1)
    save(state, folder)
    save(advance(state, 1), folder)
    file = folder / "step-00000002" / name
    text = file.read_bytes()
    file.write_bytes({"flipped": bytes([text[0] ^ 1]) + text[1:]}.get(damage, b""))
    if damage == "removed":
        file.unlink()
    assert checkpoint.newest(folder, progress) == folder / "step-00000001"
    (line,) = progress.lines
    problem = "is missing" if damage == "removed" else "is damaged"
    assert line.startswith(f"checkpoint step-00000002: {name} {problem}; kept in {folder / 'superseded'}")
    assert (folder / "superseded" / "damaged" / "step-00000002").is_dir()


def test_a_full_disk_is_one_line_and_leaves_the_snapshot_before(tmp_path: Path) -> None:
    state = advance(make_state(0, width=64), 1)
    save(state, tmp_path)
    saved = {key: value.clone() for key, value in tensors(state).items()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the process cannot write longer files
    try:
        with pytest.raises(RunError, match=r"cannot write .*step-00000002: File too large$"):
            save(advance(state, 1), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    loaded = make_state(1, width=64)
    checkpoint.load(loaded, tmp_path / "step-00000001")
    assert all(torch.equal(value, saved[key]) for key, value in tensors(loaded).items())


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"width": 5}, "ema.0.bias is float32 [4] in it and float32 [5] in this training"),
        ({"unused": True}, "ema.0.unused is absent in it and float32 [2] in this training"),
        ({"optimizer": "adamw"}, "optimizer.0.bias.exp_avg is absent in it and float32 [4] in this training"),
    ],
)
def test_a_snapshot_of_another_training_is_refused_before_anything_changes(
    tmp_path: Path, other: dict[str, Any], difference: str
) -> None:
    save(advance(make_state(0), 1), tmp_path)
    state = make_state(1, **other)
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    with pytest.raises(RunError, match="belongs to another training") as caught:
        checkpoint.load(state, tmp_path / "step-00000001")
    assert difference in str(caught.value)
    assert "\n" not in str(caught.value)
    assert state.step == 0
    assert all(torch.equal(value, before[key]) for key, value in state.model.state_dict().items())


def test_a_damaged_snapshot_is_one_line(tmp_path: Path) -> None:
    save(advance(make_state(0), 1), tmp_path)
    path = tmp_path / "step-00000001"
    data = path / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(RunError, match=r"cannot read the checkpoint .*; delete it") as caught:
        checkpoint.load(make_state(0), path)
    assert "\n" not in str(caught.value)
    (path / ".metadata").unlink()
    with pytest.raises(RunError, match="No such file"):
        checkpoint.load(make_state(0), path)


class Intruder:
    """Unpickling an object of this class makes a call whose effect is visible."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_a_snapshot_from_a_stranger_cannot_run_code(tmp_path: Path) -> None:
    save(advance(make_state(0), 1), tmp_path)
    path, trace = tmp_path / "step-00000001", tmp_path / "trace"
    (path / ".metadata").write_bytes(pickle.dumps(Intruder(trace)))
    with pytest.raises(RunError, match=r"it refers to posix\.mkdir"):
        checkpoint.load(make_state(0), path)
    assert not trace.exists()
