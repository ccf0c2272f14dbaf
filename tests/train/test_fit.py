from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from tiny_training import Killed, Training, flip_some, kill_at, make_batches
from torch import Tensor, nn

from noisystudent.console import Progress
from noisystudent.errors import InputError, RunError, Stopped
from noisystudent.records import Batch

Make = Callable[..., Training]


def lines(training: Training) -> list[dict[str, float]]:
    """Lines of the log without the number that depends on the clock."""
    text = (training.folder / "metrics.jsonl").read_text()
    read = [json.loads(line) for line in text.splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in read]


def assert_same_tensors(one: nn.Module, other: nn.Module) -> None:
    for (name, left), right in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


def evaluate(model: nn.Module) -> dict[str, float]:
    images = next(make_batches(999, 1000)).images
    with torch.no_grad():
        return {"val_top1": float(model(images).argmax(1).float().mean())}


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop_tf", "adamw"])
@pytest.mark.parametrize("kills", [(0,), (3,), (7,), (8, 9, 20), (14, 23)])
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(
    training: Make, optimizer: str, kills: tuple[int, ...]
) -> None:
    options: dict[str, Any] = {"optimizer": optimizer, "lr": 0.5, "clip_norm": 2.0}
    straight = training("straight", changes={"evaluate": evaluate}, **options)
    averaged = straight.run()
    for step in kills:
        with pytest.raises(Killed):
            training("cut", changes={"evaluate": evaluate, "batches": kill_at(step)}, **options).run()
    resumed = training("cut", changes={"evaluate": evaluate}, **options)
    assert_same_tensors(resumed.run(), averaged)
    assert_same_tensors(resumed.model, straight.model)
    assert lines(resumed) == lines(straight)


@pytest.mark.parametrize("step", [1, 6, 7, 13])
def test_stopping_saves_this_very_step_and_resumes_to_the_same_weights(training: Make, step: int) -> None:
    straight = training("straight")
    averaged = straight.run()
    progress = Progress()

    def stopping(batch: Batch, current: int) -> Tensor:
        if current == step - 1:
            progress.stop.signal = "SIGTERM"
        return flip_some(batch, current)

    with pytest.raises(Stopped, match="SIGTERM"):
        training("cut", progress=progress, changes={"augment": stopping}).run()
    snapshots = training("cut").folder / "checkpoint"
    assert max(path.name for path in snapshots.iterdir()) == f"step-{step:08d}"
    resumed = training("cut", changes={"batches": expect_start(step)})
    assert_same_tensors(resumed.run(), averaged)
    assert lines(resumed) == lines(straight)


def expect_start(step: int) -> Callable[[int, int], Iterator[Batch]]:
    def batches(start: int, stop: int) -> Iterator[Batch]:
        assert start == step
        return make_batches(start, stop)

    return batches


def test_stopping_before_the_first_step_has_nothing_to_save(training: Make) -> None:
    progress = Progress()
    progress.stop.signal = "SIGINT"
    run = training(progress=progress)
    with pytest.raises(Stopped):
        run.run()
    assert not (run.folder / "checkpoint").exists()


@pytest.mark.slow
def test_two_runs_are_bit_identical_with_several_threads(training: Make) -> None:
    torch.set_num_threads(2)
    assert_same_tensors(training("one").run(), training("two").run())


def test_log_shows_what_happened_and_when(training: Make) -> None:
    seen: list[dict[str, float]] = []
    run = training(
        total_steps=12,
        changes={"evaluate": evaluate, "on_log": seen.append},
        eval_steps=6,
        schedule="constant",
        warmup_epochs=0.0,
    )
    run.run()
    assert [(line["step"], "val_top1" in line) for line in seen] == [
        (5, False),
        (6, True),
        (10, False),
        (12, False),
        (12, True),
    ]
    assert [{k: v for k, v in line.items() if k != "images_per_second"} for line in seen] == lines(run)
    first = seen[0]
    assert first.keys() == {"step", "epoch", "loss", "train_top1", "lr", "images_per_second"}
    assert first["epoch"] == pytest.approx(5 / 6)
    assert first["lr"] == pytest.approx(2.0 * 4 / 256)
    assert first["images_per_second"] > 0
    assert 0 <= first["train_top1"] <= 1


def test_logged_loss_is_the_mean_over_its_window(training: Make) -> None:
    single, windows = training("single", log_steps=1), training("windows", log_steps=5)
    single.run()
    windows.run()
    edges = pairwise((0, 5, 10, 15, 20, 24))
    for window, (start, stop) in zip(lines(windows), edges, strict=True):
        part = lines(single)[start:stop]
        assert window["step"] == stop
        for key in ("loss", "train_top1"):
            assert window[key] == pytest.approx(sum(line[key] for line in part) / len(part), rel=1e-5)


def test_val_is_evaluated_ten_times_unless_configured_otherwise(training: Make) -> None:
    run = training(total_steps=40, changes={"evaluate": evaluate})
    run.run()
    evaluated = [line["step"] for line in lines(run) if "val_top1" in line]
    assert evaluated == list(range(4, 41, 4))


def test_the_average_in_evaluation_mode_is_evaluated_and_returned(training: Make) -> None:
    evaluated: list[nn.Module] = []

    def remember(model: nn.Module) -> dict[str, float]:
        assert not any(module.training for module in model.modules())
        evaluated.append(model)
        return {"val_top1": 0.0}

    run = training(changes={"evaluate": remember})
    averaged = run.run()
    assert all(model is averaged for model in evaluated)
    assert averaged is not run.model
    assert not any(module.training for module in averaged.modules())
    direct = training("direct", ema_decay=0.0)
    assert_same_tensors(direct.run(), direct.model)


def test_an_evaluation_does_not_change_the_training(training: Make) -> None:
    evaluated = training("evaluated", changes={"evaluate": evaluate}, eval_steps=1)
    assert_same_tensors(evaluated.run(), training("plain").run())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(training: Make, value: float) -> None:
    run = training(checkpoint_steps=2, log_steps=8)

    def breaking(batch: Batch, step: int) -> Tensor:
        if step == 9:
            run.model.head.bias.data[0] = value
        return flip_some(batch, step)

    run.changes["augment"] = breaking
    with pytest.raises(
        RunError, match=r"the loss became (nan|inf) in steps 9 to 10, .* rate of 0\.0\d+; decrease train.lr"
    ):
        run.run()
    assert max(path.name for path in (run.folder / "checkpoint").iterdir()) == "step-00000008"


def test_without_pool_rows_the_three_normalizations_train_the_same_model(training: Make) -> None:
    def labeled_only(start: int, stop: int) -> Iterator[Batch]:
        for batch in make_batches(start, stop):
            rows = len(batch.labels)
            yield Batch(batch.images[:rows], batch.labels, batch.pool_targets[:0])

    models = [
        training(name, normalization=name, total_steps=6, changes={"batches": labeled_only}).run()
        for name in ("joint", "equal", "official")
    ]
    assert_same_tensors(models[0], models[1])
    assert_same_tensors(models[0], models[2])


def test_hard_pool_labels_are_the_soft_ones_made_one_hot(training: Make) -> None:
    def one_hot(start: int, stop: int) -> Iterator[Batch]:
        for batch in make_batches(start, stop):
            hard = nn.functional.one_hot(batch.pool_targets.argmax(1), 3).float()
            yield Batch(batch.images, batch.labels, hard)

    hard = training("hard", changes={"hard_pool": True}, label_smoothing=0.0, total_steps=6).run()
    given = training("given", changes={"batches": one_hot}, label_smoothing=0.0, total_steps=6).run()
    assert_same_tensors(hard, given)


def test_bfloat16_and_contiguous_images_train_too(training: Make) -> None:
    half = training("half", changes={"dtype": torch.bfloat16}, channels_last=False).run()
    full = training("full").run()
    assert all(p.dtype == torch.float32 for p in half.parameters())
    for left, right in zip(half.parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0.1, atol=0.05)


def test_images_reach_the_model_as_uint8_channels_last(training: Make) -> None:
    run = training(total_steps=1)
    layouts: list[tuple[torch.dtype, bool]] = []
    run.model.register_forward_pre_hook(
        lambda _, inputs: layouts.append(
            (inputs[0].dtype, inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
    )
    run.run()
    assert layouts == [(torch.uint8, True)]


def test_a_model_with_another_number_of_classes_is_the_callers_error(training: Make) -> None:
    with pytest.raises(InputError, match=r"\(9, 3\) logits for 9 images; it must have 4 outputs"):
        training(changes={"num_classes": 4}).run()


def test_a_loader_that_ends_early_and_a_snapshot_beyond_the_end_are_errors(training: Make) -> None:
    def short(start: int, stop: int) -> Iterator[Batch]:
        return islice(make_batches(start, stop), 10)

    with pytest.raises(RunError, match="at step 10 of 24: the loader ran out"):
        training(changes={"batches": short}).run()
    with pytest.raises(RunError, match="is at step 7 of 6; delete it"):
        training(total_steps=6).run()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_on_a_gpu_waits_for_nothing(training: Make, dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    held = [
        Batch(b.images.to(device), b.labels.to(device), b.pool_targets.to(device))
        for b in make_batches(0, 24)
    ]

    def quiet(start: int, stop: int) -> Iterator[Batch]:
        for step in range(start, stop):
            torch.cuda.set_sync_debug_mode(
                "error" if step % 5 in (1, 2) else "default"
            )  # it logs after steps 4, 9, …
            yield held[step]

    changes = {
        "device": device,
        "dtype": dtype,
        "batches": quiet,
        "augment": lambda batch, step: batch.images.flip(3),
        "draw_noise": lambda batch, step: None,
    }
    try:
        straight = training(changes=changes, optimizer="rmsprop_tf", clip_norm=1.0, checkpoint_steps=10).run()
        resumed = training(changes=changes, optimizer="rmsprop_tf", clip_norm=1.0).run()  # from step 20
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for left, right in zip(straight.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(left, right)
