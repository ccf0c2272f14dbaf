"""Published sets in a folder: which is found, that it is checked first, read whole or as a sample."""

from __future__ import annotations

import shutil
from pathlib import Path

import imagenet_like
import numpy as np
import pytest
from imagenet_like import noise

from noisystudent.console import Progress, StopFlag
from noisystudent.errors import InputError, RunError, Stopped
from noisystudent.evaluation import copies, published
from noisystudent.evaluation import rows as row_module
from noisystudent.evaluation.measure import measure
from noisystudent.evaluation.options import Options
from noisystudent.evaluation.rows import Row
from noisystudent.robustness import imagenet, released
from noisystudent.robustness.corruptions import corrupt
from noisystudent.robustness.measures import CORRUPTIONS, PERTURBATIONS

CLASSES = tuple("abc")
MODEL = imagenet_like.predictor(classes=CLASSES)
COUNT = 6


def written(root: Path, *, count: int = COUNT, names: tuple[str, ...] = CORRUPTIONS) -> Path:
    """A set in the layout of ImageNet-C."""
    images, rows = noise(count, 32), np.arange(count)
    files = [f"{CLASSES[row % 3]}/{row}.png" for row in rows]
    for name in names:
        for severity in range(1, 6):
            made = corrupt(images, "contrast", severity, seed=0, rows=rows)
            copies.write_folder(root, name, severity, [made], files)
    return root


def arrays(root: Path, labels: np.ndarray, names: tuple[str, ...] = CORRUPTIONS) -> Path:
    """A set in the layout of CIFAR-10-C."""
    root.mkdir(parents=True)
    for name in names:
        np.save(root / f"{name}.npy", np.zeros((5 * len(labels), 32, 32, 3), np.uint8))
    np.save(root / "labels.npy", np.tile(labels, 5))
    return root


def until_error(data: Path, error: type[Exception], match: str, **options: object) -> list[Row]:
    """The rows that come before an error does."""
    rows: list[Row] = []
    with pytest.raises(error, match=match):
        for row in measure(MODEL, data, Options(**options)):  # type: ignore[arg-type]
            rows.append(row)
    return rows


# --- which set is found ---


def test_a_set_of_one_test_is_not_taken_for_the_other(tmp_path: Path) -> None:
    """Beside `val` and ImageNet-C alone, perturbations are generated: both have a folder gaussian_noise."""
    imagenet_like.write_images(tmp_path / "val", CLASSES)
    written(tmp_path / "imagenet-c", names=CORRUPTIONS[:1])
    written(tmp_path / "families" / "noise", names=CORRUPTIONS[:1])
    arrays(tmp_path / "arrays-c", np.arange(3), CORRUPTIONS[:1])
    (tmp_path / "arrays-p").mkdir()
    np.save(tmp_path / "arrays-p" / "gaussian_noise.npy", np.zeros((2, 3, 32, 32, 3), np.uint8))
    (tmp_path / "frames" / "gaussian_noise" / "a" / "sequence").mkdir(parents=True)
    for name, tests in (
        (".", {"c"}),
        ("imagenet-c", {"c"}),
        ("families", {"c"}),
        ("arrays-c", {"c"}),
        ("arrays-p", {"p"}),
        ("frames", {"p"}),
        ("val", set()),
    ):
        assert set(published.find(tmp_path / name, MODEL, None)) == tests, name
    rows = imagenet_like.measured(MODEL, tmp_path, tests=("p",))
    assert "ImageNet-P protocol, regenerated at 32 pixels" in rows["p", "mean flip probability"].note


def test_of_two_cifars_the_models_is_taken(tmp_path: Path) -> None:
    for name in ("cifar-10-c", "cifar-100-c"):
        (tmp_path / name).mkdir()
    for count in (10, 100):
        model = imagenet_like.predictor(classes=tuple(map(str, range(count))))
        assert published.find(tmp_path, model, None)["c"].root.name == f"cifar-{count}-c"


def test_a_set_whose_first_part_is_missing_is_not_generated_in_its_place(tmp_path: Path) -> None:
    imagenet_like.write_images(tmp_path / "val", CLASSES)
    written(tmp_path / "imagenet-c")
    shutil.rmtree(tmp_path / "imagenet-c" / "gaussian_noise")
    until_error(tmp_path, InputError, "has no folder gaussian_noise/1", tests=("c",))


def test_only_published_sets_need_no_clean_images(tmp_path: Path) -> None:
    """Nor does another test, of a set of its own, bring the rest of the folder into play."""
    model = imagenet_like.predictor()
    (tmp_path / "imagenet-c").mkdir()
    folder = imagenet_like.write_images(tmp_path / "imagenet-a")
    images, files = noise(2, 32), [f"{imagenet_like.CLASSES[kind]}/{kind}.png" for kind in (6, 7)]
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            copies.write_folder(tmp_path / "imagenet-c", name, severity, [images], files)
    shutil.move(folder / imagenet_like.CLASSES[7], folder / imagenet_like.CLASSES[11])  # 7 is not of -A
    rows = imagenet_like.measured(model, tmp_path, tests=("c", "a"))
    assert {("c", "mCE"), ("a", "top1"), ("a", "aurra")} <= rows.keys()


def test_extra_corruptions_and_perturbations_are_generated_beside_a_published_set(tmp_path: Path) -> None:
    imagenet_like.write_images(tmp_path / "val", CLASSES, each=1)
    written(tmp_path / "imagenet-c")
    (tmp_path / "cifar-10-p").mkdir()
    for name in PERTURBATIONS:
        np.save(tmp_path / "cifar-10-p" / f"{name}.npy", np.zeros((2, 3, 32, 32, 3), np.uint8))
    extra = ("c-extra", "p-extra")
    found = imagenet_like.measured(MODEL, tmp_path, tests=("c", "p", *extra))
    alone = imagenet_like.measured(MODEL, tmp_path / "val", tests=extra)
    assert {("c-extra", "error spatter"), ("p-extra", "flips shear")} < alone.keys()
    assert all(found[key].value == row.value for key, row in alone.items())
    assert not [name for _, name in alone if "mean" in name]


# --- checked first ---


def test_a_missing_part_is_reported_before_the_first_is_measured(tmp_path: Path) -> None:
    imagenet_like.write_images(tmp_path / "val", CLASSES)
    written(tmp_path / "imagenet-c")
    shutil.rmtree(tmp_path / "imagenet-c" / "jpeg_compression" / "5")
    rows = until_error(tmp_path, InputError, "has no folder jpeg_compression/5", tests=("clean", "c"))
    assert {row.test for row in rows} == {"clean"}
    assert imagenet_like.measured(MODEL, tmp_path, tests=("clean",))
    shutil.rmtree(tmp_path / "imagenet-c" / "jpeg_compression" / "4")
    until_error(tmp_path, InputError, "has no folder jpeg_compression/5", tests=("c",), fast=True)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda root: (root / "fog.npy").unlink(), r"fog\.npy cannot be read as an array"),
        (lambda root: (root / "fog.npy").write_bytes(b"no array"), r"fog\.npy cannot be read as an array"),
        (
            lambda root: (root / "fog.npy").write_bytes((root / "fog.npy").read_bytes()[:3000]),
            r"fog\.npy cannot be read as an array",
        ),
        (lambda root: np.save(root / "labels.npy", np.zeros(29, int)), "30 integers, one for each image of"),
        (lambda root: np.save(root / "labels.npy", np.zeros(30)), "float64 .30,.; it must hold 30 integers"),
        (lambda root: np.save(root / "labels.npy", np.arange(30) % 10), "classes 0 to 9; the model has 3"),
        (lambda root: np.save(root / "labels.npy", np.arange(30) % 2), "classes 0 to 1; the model has 3"),
    ],
)
def test_arrays_that_are_no_such_set(tmp_path: Path, spoil: object, match: str) -> None:
    root = arrays(tmp_path / "cifar-10-c", np.arange(COUNT) % 3)
    assert imagenet_like.measured(MODEL, root, tests=("c",))
    spoil(root)  # type: ignore[operator]
    assert until_error(root, InputError, match, tests=("c",)) == []


def test_perturbations_are_checked_too(tmp_path: Path) -> None:
    for name in PERTURBATIONS[:-1]:
        np.save(tmp_path / f"{name}.npy", np.zeros((2, 3, 32, 32, 3), np.uint8))
    assert until_error(tmp_path, InputError, r"scale\.npy cannot be read", tests=("p",)) == []


# --- what breaks off ---


def test_a_damaged_image_loses_nothing_that_was_done(tmp_path: Path) -> None:
    written(tmp_path)
    whole = imagenet_like.measured(MODEL, tmp_path, tests=("c",))
    damaged = tmp_path / "snow" / "3" / "b" / "1.JPEG"
    damaged.write_bytes(damaged.read_bytes()[:300])
    rows = until_error(tmp_path, RunError, r"1\.JPEG cannot be read \(truncated JPEG", tests=("c",))
    before = CORRUPTIONS[: CORRUPTIONS.index("snow")]
    assert [row.measure for row in rows[: len(before)]] == [f"error {name}" for name in before]
    assert all(row.value == whole["c", row.measure].value for row in rows)


def test_cells_of_unlike_counts_are_no_set(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "fog" / "2" / "a" / "0.JPEG").unlink()
    rows = until_error(tmp_path, InputError, "fog of severity 2 has 5 images, others have 6", tests=("c",))
    assert rows[0].measure == "error gaussian_noise"


class Raised(StopFlag):
    """A signal that comes after the flag was read `left` times."""

    def __init__(self, left: int) -> None:
        self.left = left

    @property
    def signal(self) -> str | None:  # type: ignore[override]
        self.left -= 1
        return "SIGINT" if self.left < 0 else None


@pytest.mark.parametrize("left", [0, 1, 40, 300])
@pytest.mark.parametrize("tests", [("c",), ("p",), ("clean", "fgsm")])
def test_a_signal_stops_between_two_batches_and_keeps_the_parts(
    tmp_path: Path, tests: tuple[str, ...], left: int
) -> None:
    data = imagenet_like.write_images(tmp_path / "val", CLASSES, each=1)
    names: list[str] = []
    try:
        for row in measure(MODEL, data, Options(tests=tests), progress=Progress(Raised(left))):
            names.append(row.measure)
    except Stopped as error:
        assert "stopped by SIGINT; " in str(error) and error.exit_code == 75
        assert not any("mean" in name for name in names)
        if left == 40 and "c" in tests:
            assert "error gaussian_noise" in names
    else:
        assert left > 1


def test_a_signal_is_checked_for_within_a_part(tmp_path: Path) -> None:
    """However long one corruption takes, the flag is read for each of its batches."""
    flag = Raised(10**9)
    data = arrays(tmp_path / "c", np.arange(300) % 3)
    list(measure(MODEL, data, Options(tests=("c",)), progress=Progress(flag)))
    assert 10**9 - flag.left >= 15 * 5 * 3  # three batches of at most 128


# --- a sample ---


def test_fast_takes_a_stratified_sample_of_a_published_set_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, count=12)
    monkeypatch.setattr("noisystudent.evaluation.test_images.FAST_IMAGES", 6)
    found = published.find(tmp_path, MODEL, lambda labels: np.flatnonzero(labels == 2))
    labels = np.concatenate([own for _, own in found["c"].corrupted("fog", 1)])
    assert labels.tolist() == [2] * 4
    rows = imagenet_like.measured(MODEL, tmp_path, tests=("c",), fast=True)
    assert "a stratified sample, severities 1, 3, 5 only" in rows["c", "mean error"].note
    assert ("c", "error fog 2") not in rows and ("c", "error fog 3") in rows
    assert round(6 * rows["c", "error fog 3"].value, 6).is_integer()
    frames = np.arange(4, dtype=np.uint8)[:, None, None, None, None] * np.ones((1, 3, 8, 8, 3), np.uint8)
    np.save(tmp_path / "tilt.npy", frames)
    pick = np.array([1, 3])
    (part,) = released.read_sequence_arrays(
        tmp_path, "tilt", batch_size=8, pick=lambda zeros: pick + zeros[1]
    )
    assert part[:, 0, 0, 0, 0].tolist() == [1, 3]


def test_without_fast_a_sample_is_all(tmp_path: Path) -> None:
    assert Options(fast=True).severities == (1, 3, 5) and Options().severities == (1, 2, 3, 4, 5)
    written(tmp_path)
    note = imagenet_like.measured(MODEL, tmp_path, tests=("c",))["c", "mean error"].note
    assert note == f"the published images in {tmp_path}"


# --- ImageNet's other sets ---


def test_the_gap_of_imagenet_r_is_among_its_own_classes(tmp_path: Path) -> None:
    model = imagenet_like.predictor()
    kept = imagenet.subset("r")
    imagenet_like.write_images(tmp_path / "imagenet-r", kept.wnids[:2])
    val = imagenet_like.write_images(tmp_path / "val", (*kept.wnids[:3], imagenet_like.CLASSES[0]))
    rows = imagenet_like.measured(model, tmp_path, tests=("r",))
    inside = imagenet_like.write_images(tmp_path / "inside", kept.wnids[:3])
    assert len(list(val.glob("*/*"))) == 12
    expected = imagenet_like.measured(model, inside, tests=("r",))["r", "top1"].value
    beside = rows["r", "top1 on the same classes of val"]
    assert beside.value == expected and beside.note == "9 images"
    assert rows["r", "gap to val"].value == pytest.approx(expected - rows["r", "top1"].value)
    assert ("r", "gap to val") not in imagenet_like.measured(model, inside, tests=("r",))


def test_published_figures_of_v2_are_of_one_of_its_three_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(row_module.WHOLE, "v2", 6)
    model, beside = imagenet_like.predictor(), ("v2", "top1 of tf_efficientnet_l2.ns_jft_in1k")
    for name, shown in (("imagenetv2-matched-frequency-format-val", True), ("imagenetv2-top-images", False)):
        imagenet_like.write_images(tmp_path / name[:12] / name, ("10", "9"))
        rows = imagenet_like.measured(model, tmp_path / name[:12] / name, tests=("v2",))
        assert (beside in rows) == shown


def test_clean_figures_of_all_of_val_stand_beside_published_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, beside = imagenet_like.predictor(), ("clean", "top1 of tf_efficientnet_l2.ns_jft_in1k")
    data = imagenet_like.write_images(tmp_path)
    assert beside not in imagenet_like.measured(model, data, tests=("clean",))
    monkeypatch.setattr(row_module, "_VAL", 6)
    assert imagenet_like.measured(model, data, tests=("clean",))[beside].value == pytest.approx(0.8836)
