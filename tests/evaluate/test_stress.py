from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from noisystudent.errors import InputError, RunError
from noisystudent.evaluate import columns, robustness
from noisystudent.evaluate.answers import Answers, load_answers, save_answers, stratified
from noisystudent.evaluate.pictures import Pictures, generated
from noisystudent.evaluate.stress import TESTS, Plan, Subject, asked, stress

SIDE, COUNT, CLASSES = 16, 12, 3


def pictures(batch: int = 5) -> Pictures:
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 3, SIDE, SIDE), dtype=torch.uint8, generator=draws)
    labels = np.arange(COUNT) % CLASSES
    return generated(lambda: images.split(batch), lambda: images.split(batch), labels, seed=0, frost=None)


def linear(seed: int) -> Subject:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, CLASSES, bias=False)).eval()

    def logits(images: Tensor) -> Tensor:
        found: Tensor = net(images.float() / 255 - 0.5)
        return found

    return Subject(logits, logits)


def plan(*tests: str, severities: tuple[int, ...] = (1, 5)) -> Plan:
    return Plan(tests=tests, severities=severities, seed=0)


def answers(subjects: dict[str, Subject], wanted: Plan, batch: int = 5) -> dict[str, Answers]:
    found: dict[str, Answers] = {name: {} for name in subjects}
    stress(subjects, pictures(batch), wanted, found, lambda: None, lambda done, total: None)
    return found


def same(one: Answers, other: Answers) -> None:
    assert one.keys() == other.keys()
    for key, values in one.items():
        np.testing.assert_array_equal(values, other[key], err_msg=key)


def test_every_test_answers_for_every_image() -> None:
    found = answers({"m": linear(0)}, plan(*TESTS))["m"]
    corruptions = [name for name in robustness.CORRUPTIONS if name != "frost"]
    assert {key for key in found if key.startswith("c/")} == {
        f"c/{name}/{severity}" for name in corruptions for severity in (1, 5)
    }
    assert {key.split("/")[1] for key in found if key.startswith("p/")} == set(robustness.PERTURBATIONS)
    assert {key for key in found if "fgsm" in key} == {f"fgsm/{eps}" for eps in (2, 4, 8, 16)}
    assert all(
        values.shape == ((COUNT,) if "calibration" not in key else ()) for key, values in found.items()
    )


def test_neither_batches_nor_other_models_change_an_answer() -> None:
    alone = answers({"m": linear(0)}, plan(*TESTS))["m"]
    beside = answers({"first": linear(1), "m": linear(0)}, plan(*TESTS), batch=12)["m"]
    same(alone, beside)


def test_what_is_there_is_not_done_again_and_every_part_is_saved() -> None:
    whole = answers({"m": linear(0)}, plan("clean", "c", "fgsm"))["m"]
    found: dict[str, Answers] = {"m": {}}
    saves = 0

    class Killed(BaseException):
        pass

    def save() -> None:
        nonlocal saves
        saves += 1
        if saves == 7:
            raise Killed

    arguments = ({"m": linear(0)}, pictures(), plan("clean", "c", "fgsm"), found)
    with pytest.raises(Killed):
        stress(*arguments, save, lambda done, total: None)
    before = set(found["m"])
    assert before < set(whole)

    def never(images: Tensor) -> Tensor:
        raise AssertionError("asked again")

    silent = Subject(never, never)
    partial: dict[str, Answers] = {"m": dict(whole)}
    stress({"m": silent}, pictures(), plan("clean", "c", "fgsm"), partial, save, lambda done, total: None)
    stress(*arguments, lambda: None, lambda done, total: None)
    same(found["m"], whole)


def test_attacks_do_harm_and_more_with_a_larger_bound() -> None:
    column = columns.column(answers({"m": linear(0)}, plan("clean", "fgsm", "pgd"))["m"])
    sweep = [column["fgsm"][eps]["value"] for eps in ("2", "4", "8", "16")]
    assert sorted(sweep, reverse=True) == sweep
    assert column["clean"]["value"] >= sweep[0] > sweep[-1]
    assert column["pgd"]["16"]["value"] <= sweep[-1]


def test_a_model_without_gradients_is_told_before_its_attack_and_keeps_the_rest() -> None:
    found: dict[str, Answers] = {"m": {}}
    subject = Subject(linear(0).predict, None)
    with pytest.raises(InputError, match="m gives no gradients, as an ONNX file never does; leave out fgsm"):
        stress(
            {"m": subject}, pictures(), plan("clean", "fgsm"), found, lambda: None, lambda done, total: None
        )
    assert list(found["m"]) == ["clean"]


def test_attacks_take_few_images_at_a_time_and_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient keeps what every layer made of every image: a batch for labeling is too much for it."""
    whole = answers({"m": linear(0)}, plan("fgsm", "pgd"), batch=12)["m"]
    monkeypatch.setattr("noisystudent.evaluate.stress._ATTACKED_ON_CPU", 4 * SIDE**2)
    subject, seen = linear(0), []

    def logits(images: Tensor) -> Tensor:
        seen.append(len(images))
        assert subject.logits is not None
        return subject.logits(images)

    same(answers({"m": Subject(logits, logits)}, plan("fgsm", "pgd"), batch=12)["m"], whole)
    assert max(seen) == 4


def test_neither_tf32_nor_autocast_rounds_an_attack() -> None:
    backends, subject = (torch.backends.cudnn, torch.backends.cuda.matmul), linear(0)
    seen: list[bool] = []

    def logits(images: Tensor) -> Tensor:
        seen.extend([*(backend.allow_tf32 for backend in backends), torch.is_autocast_enabled("cpu")])
        return subject.predict(images)

    before = [backend.allow_tf32 for backend in backends]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answers({"m": Subject(logits, logits)}, plan("fgsm"))
    assert seen and not any(seen)
    assert [backend.allow_tf32 for backend in backends] == before


def test_sequences_are_answered_one_by_one_as_defined() -> None:
    found = answers({"m": linear(0)}, plan("p"))["m"]
    frames = torch.cat(list(pictures().perturbed("tilt")))
    logits = linear(0).predict(frames.flatten(0, 1)).detach().numpy().reshape(*frames.shape[:2], -1)
    for row, one in enumerate(logits[:, None]):
        top = robustness.top5(one)
        assert found["p/tilt/flips"][row] == pytest.approx(robustness.flip_probability(top[..., 0], False))
        assert found["p/tilt/t5d"][row] == pytest.approx(robustness.t5d(top, False))
        assert found["p/tilt/zipf"][row] == pytest.approx(robustness.zipf(one, False))


def test_an_unknown_test_is_named() -> None:
    with pytest.raises(InputError, match="there is no test 'x'; choose of clean, calibration, c, p"):
        answers({"m": linear(0)}, plan("x"))


# --- columns ---


def test_a_column_is_the_definitions_on_the_same_answers() -> None:
    found = answers({"m": linear(0)}, plan("clean", "c", "p"))["m"]
    column = columns.column(found)
    errors = {
        name: {int(severity): error for severity, error in cells.items()}
        for name, cells in column["c"]["errors"].items()
    }
    assert column["clean"]["value"] == pytest.approx(found["clean"].mean())
    assert column["c"]["value"] == pytest.approx(robustness.mean_corruption_error(errors, tuple(errors)))
    assert column["p"]["value"] == pytest.approx(robustness.mean_flip_probability(column["p"]["flips"]))
    assert column["c"]["low"] <= column["c"]["value"] <= column["c"]["high"]


def test_a_model_against_itself_is_one_and_against_another_the_reciprocal_order() -> None:
    found = answers({"a": linear(0), "b": linear(3)}, plan("clean", "c", "p"))
    own, other = (columns.column(found[name]) for name in ("a", "b"))
    itself = columns.ratios(own, own)
    assert itself["mce"] == pytest.approx(1) and itself["mfr"] == pytest.approx(1)
    cell = columns.difference(found["a"], found["b"], "c")
    assert cell["value"] == pytest.approx(own["c"]["value"] - other["c"]["value"])
    back = columns.difference(found["b"], found["a"], "c")
    assert (back["low"], back["high"]) == pytest.approx((-cell["high"], -cell["low"]))


def test_alexnet_divided_by_itself_is_one() -> None:
    found = columns.ratios(columns.alexnet(), columns.alexnet())
    assert found == {"mce": pytest.approx(1), "relative_mce": pytest.approx(1), "mfr": pytest.approx(1)}


def test_a_perfect_rival_gives_no_ratio() -> None:
    perfect = {"c": {"errors": {"fog": {"1": 0.0}}}, "p": {"flips": {"rotate": 0.0}}}
    own = {"c": {"errors": {"fog": {"1": 0.5}}}, "p": {"flips": {"rotate": 0.5}}}
    assert columns.ratios(own, perfect) == {"mce": None, "mfr": None}


# --- kept on disk ---


@pytest.mark.parametrize("severities", [(1, 5), (1,)])
def test_after_another_plan_a_plan_finds_what_it_finds_alone(severities: tuple[int, ...]) -> None:
    found = answers({"m": linear(0)}, plan("clean", "c", "fgsm", severities=(5,)))
    changed = plan("clean", "c", severities=severities)
    stress({"m": linear(0)}, pictures(), changed, found, lambda: None, lambda done, total: None)
    same(asked(found["m"], changed), answers({"m": linear(0)}, changed)["m"])


def test_answers_come_back_for_the_same_images_and_plan_only(tmp_path: Path) -> None:
    found = answers({"m": linear(0)}, plan("clean", "calibration", "fgsm"))["m"]
    save_answers(tmp_path / "m.npz", found, "these images")
    same(load_answers(tmp_path / "m.npz", "these images"), found)
    assert load_answers(tmp_path / "m.npz", "others") == {}
    assert load_answers(tmp_path / "none.npz", "these images") == {}
    (tmp_path / "m.npz").write_bytes((tmp_path / "m.npz").read_bytes()[:100])
    with pytest.raises(RunError, match=r"m\.npz cannot be read .*; delete it and run again"):
        load_answers(tmp_path / "m.npz", "these images")


# --- the sample ---


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 120), st.integers(0, 3))
def test_a_sample_has_every_class_by_its_share(sizes: list[int], count: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rows: NDArray[np.int64] = stratified(labels, count, seed)
    assert len(rows) == min(count, len(labels)) and (np.diff(rows) > 0).all()
    taken = np.bincount(labels[rows], minlength=len(sizes))
    share = np.array(sizes) * len(rows) / len(labels)
    assert (np.abs(taken - share) <= 1).all()
    assert np.array_equal(rows, stratified(labels, count, seed))
