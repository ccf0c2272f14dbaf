"""Faults that are planted into a training, one at a time: the pretended GPU sees each and names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from device_training import Setting, require_equal, trained
from pretend_gpu import Gpu
from pretend_streams import Fault
from timm.optim import create_optimizer_v2
from torch import Tensor

from noisystudent.records import Batch
from noisystudent.train import losses, optim
from noisystudent.train import step as step_module
from noisystudent.train.checkpoint import TrainState
from noisystudent.train.ema import Ema, decay_at
from noisystudent.train.step import TrainStep


@dataclass
class Spoilt:
    """Noise with a fault in `draw` or in `apply`; `shift` is an own number on the device."""

    noise: Any
    drawing: Callable[[Spoilt, int], None] = lambda noise, step: None
    applying: Callable[[Spoilt, Tensor], Tensor] = lambda noise, images: images ^ noise.shift
    step: int = 0
    shift: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.shift = torch.zeros((), dtype=torch.uint8, device="cuda")
        self.side = torch.cuda.Stream()
        self.pinned = torch.empty((), dtype=torch.uint8, pin_memory=True)

    def batches(self, batches: Any, start: int) -> Any:
        return self.noise.batches(batches, start)

    def draw(self, batch: Batch, step: int) -> None:
        self.noise.draw(batch, step)
        self.step = step
        self.drawing(self, step)

    def apply(self, images: Tensor) -> Tensor:
        return self.applying(self, self.noise.apply(images))


def new_memory(noise: Spoilt, step: int) -> None:
    noise.shift = torch.full((), step, dtype=torch.uint8, device="cuda")


def unpinned_copy(noise: Spoilt, step: int) -> None:
    torch.zeros(2**15).to("cuda", non_blocking=True)


def blocking_copy(noise: Spoilt, step: int) -> None:
    noise.shift.copy_(noise.pinned)


def second_stream(noise: Spoilt, step: int) -> None:
    with torch.cuda.stream(noise.side):
        noise.shift.fill_(step)


def overwritten(noise: Spoilt, step: int) -> None:
    noise.pinned.numpy()[...] = step
    noise.shift.copy_(noise.pinned, non_blocking=True)


def generator(noise: Spoilt, images: Tensor) -> Tensor:
    draws = torch.Generator("cuda").manual_seed(noise.step)
    return images ^ torch.randint(0, 9, images.shape, dtype=torch.uint8, device="cuda", generator=draws)


NOISE = {
    "masks in new memory": ({"drawing": new_memory}, r"bitwise_xor\S* uses new memory in each step"),
    "large unpinned copy": ({"drawing": unpinned_copy}, r"waits .*unpinned copy of 131072 bytes to the"),
    "blocking copy": ({"drawing": blocking_copy}, r"waits .*blocking pinned copy of 1 bytes to the device"),
    "second stream not waited for": ({"drawing": second_stream}, r"xor reads what a side stream of cuda:0"),
    "pinned memory overwritten": ({"drawing": overwritten}, r"pinned memory was overwritten before its copy"),
    "unregistered generator": ({"applying": generator}, r"from a generator that no graph has registered"),
    "step counter in the noise": (
        {"applying": lambda noise, images: images ^ noise.step},
        r"a Python number of aten.bitwise_xor\S* changed .*\[\(2, 3\)\]",
    ),
}


@pytest.mark.parametrize(("fault", "message"), NOISE.values(), ids=NOISE)
def test_a_fault_in_the_noise_is_seen(gpu: Gpu, fault: dict[str, Any], message: str) -> None:
    with pytest.raises(Fault, match=message):
        trained(gpu, Setting(), wrap=lambda noise: Spoilt(noise, **fault))


class Counter:
    """A number that changes from step to step, on the host."""

    count = 0

    def next(self) -> int:
        self.count += 1
        return self.count


def write_by_mask(loss: Tensor, logits: Tensor, counter: Counter) -> Tensor:
    copy = logits.clone()
    copy[logits > 0] = 0
    return loss + copy.sum()


def wait(loss: Tensor, logits: Tensor, counter: Counter) -> Tensor:
    torch.cuda.synchronize()
    return loss


Change = Callable[[Tensor, Tensor, Counter], Any]
LOSS: dict[str, tuple[Change, str]] = {
    "item": (lambda loss, logits, counter: loss * loss.item(), r"the device: item at device/test_planted"),
    "branch on the loss": (lambda loss, logits, counter: loss if loss > 0 else -loss, r"device: item"),
    "tolist": (lambda loss, logits, counter: loss * logits.tolist()[0][0], r"device: tolist"),
    "copy to the host": (lambda loss, logits, counter: loss * logits.cpu()[0, 0], r"\(18, 3\) to the host"),
    "mask as an index": (lambda loss, logits, counter: loss + logits[logits > 0].sum(), r"index with a mask"),
    "mask as an index of a write": (write_by_mask, r"index_put_ with a mask"),
    "index of the host": (
        lambda loss, logits, counter: loss + logits[torch.arange(18)].sum(),
        r"index with an index on the host",
    ),
    "nonzero": (lambda loss, logits, counter: loss + logits.nonzero().sum(), r"device: nonzero"),
    "synchronize": (wait, r"device: synchronize"),
    "constant of the host": (lambda loss, logits, counter: loss + torch.ones(3)[:1], r"same device: add"),
    "constant that is copied": (
        lambda loss, logits, counter: loss + torch.tensor([1.0, 2.0], device="cuda").sum(),
        r"blocking unpinned copy of 8 bytes",
    ),
    "Python number": (lambda loss, logits, counter: loss * counter.next(), r"a Python number of aten.mul"),
    "number in a tensor of the host": (
        lambda loss, logits, counter: loss * torch.tensor(float(counter.next())),
        r"a Python number of aten.mul",
    ),
    "Python branch": (
        lambda loss, logits, counter: loss if counter.next() % 2 else loss + 1,
        r"the operations of a step changed: .* where was",
    ),
}


@pytest.mark.parametrize(("fault", "message"), LOSS.values(), ids=LOSS)
def test_a_fault_in_the_loss_is_seen(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, fault: Change, message: str
) -> None:
    real, counter = losses.joint_loss, Counter()

    def spoilt(logits: Tensor, *arguments: Any, **options: Any) -> Any:
        return fault(real(logits, *arguments, **options), logits, counter)

    monkeypatch.setattr(step_module, "joint_loss", spoilt)
    with pytest.raises(Fault, match=message):
        trained(gpu, Setting())


def rate_as_a_number(patch: pytest.MonkeyPatch) -> None:
    def prepare(step: TrainStep, state: TrainState, batch: Batch) -> None:
        for group in state.optimizer.param_groups:
            group["lr"] = step.lr(state.step)
        state.decay.fill_(decay_at(state.step, 0.9))
        step.noise.draw(batch, state.step)

    patch.setattr(TrainStep, "prepare", prepare)


def decay_in_python(patch: pytest.MonkeyPatch) -> None:
    real, counter = Ema.update, Counter()

    def update(ema: Ema, decay: Tensor) -> None:
        real(ema, decay * decay_at(counter.next(), 0.9))

    patch.setattr(Ema, "update", update)


def not_capturable(patch: pytest.MonkeyPatch) -> None:
    real = create_optimizer_v2

    def create(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **options | {"fused": False, "capturable": False, "foreach": False})

    patch.setattr(optim, "create_optimizer_v2", create)


def averages_in_new_memory(patch: pytest.MonkeyPatch) -> None:
    def update(ema: Ema, decay: Tensor) -> None:
        for average in ema.module.parameters():
            average.data = average * decay

    patch.setattr(Ema, "update", update)


UPDATE = {
    "rate as a number": (rate_as_a_number, "sgd", r"a Python number of aten._fused_sgd_"),
    "decay counted in Python": (decay_in_python, "sgd", r"a Python number of aten.mul\S* changed"),
    "optimiser that is not capturable": (not_capturable, "adamw", r"the device: item at train/step.py"),
    "averages in new memory": (averages_in_new_memory, "sgd", r"uses new memory in each step"),
}


@pytest.mark.parametrize(("plant", "optimizer", "message"), UPDATE.values(), ids=UPDATE)
def test_a_fault_in_the_update_is_seen(
    gpu: Gpu,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[Any], None],
    optimizer: str,
    message: str,
) -> None:
    plant(monkeypatch)
    with pytest.raises(Fault, match=message):
        trained(gpu, Setting(train={"optimizer": optimizer}))


def test_a_batch_that_does_not_reach_the_graph_is_seen(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    eager, real = trained(gpu, Setting()), Tensor.copy_

    def forgotten(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        return target if target.shape[1:] == (3, 16, 16) else real(target, source, non_blocking)

    monkeypatch.setattr(Tensor, "copy_", forgotten)
    captured = trained(gpu, Setting(form="captured"))
    with pytest.raises(
        Fault, match=r"differ in loss of step 4.* not written .*\(18, 3, 16, 16\) torch.uint8"
    ):
        require_equal(eager, captured)
