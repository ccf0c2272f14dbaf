"""The rows of a model's results, and when published figures stand beside its own."""

from __future__ import annotations

import json
from pathlib import Path

import imagenet_like
import numpy as np
import pytest

from noisystudent.errors import InputError
from noisystudent.evaluation import copies, rows
from noisystudent.evaluation.rows import SUFFIXES, Row, part_rows, result_rows, write_rows
from noisystudent.robustness import anchors, measures, summary
from noisystudent.robustness.corruptions import corrupt
from noisystudent.robustness.measures import CORRUPTIONS, PERTURBATIONS
from noisystudent.robustness.results import Results
from noisystudent.run.files import check_out

COUNT = 20
MODEL = imagenet_like.predictor()
OTHER = imagenet_like.predictor(classes=tuple("abc"))


def some_results(*, clean: bool = True, severities: tuple[int, ...] = (1, 2, 3, 4, 5)) -> Results:
    rng = np.random.default_rng(0)
    found: Results = {"clean": rng.random(COUNT) < 0.9} if clean else {}
    found |= {f"c/{name}/{s}": rng.random(COUNT) < 0.6 for name in CORRUPTIONS for s in severities}
    for name in PERTURBATIONS:
        for kind, most in (("flips", 1), ("t5d", 18), ("zipf", 2)):
            found[f"p/{name}/{kind}"] = (most * rng.random(COUNT)).astype(np.float32)
    found |= {f"fgsm/{eps}": rng.random(COUNT) < 0.3 for eps in (2, 4, 8, 16)}
    return found | {f"pgd/16{start}": np.zeros(COUNT, bool) for start in ("", "-random")}


def rows_of(test: str, given: Results, model: object = MODEL, **options: object) -> dict[str, Row]:
    found = result_rows(test, given, model, "note", **options)  # type: ignore[arg-type]
    return {row.measure: row for row in found}


def test_corruptions_have_the_rows_of_their_definition() -> None:
    given = some_results()
    errors = {
        name: {s: float(1 - given[f"c/{name}/{s}"].mean()) for s in range(1, 6)} for name in CORRUPTIONS
    }
    found = rows_of("c", given)
    every = [error for row in errors.values() for error in row.values()]
    assert found["mean error"].value == pytest.approx(np.mean(every))
    assert found["mCE"].value == pytest.approx(measures.mce(errors))
    relative = measures.relative_mce(errors, float(1 - given["clean"].mean()))
    assert found["relative mCE"].value == pytest.approx(relative)
    for name in CORRUPTIONS:
        assert found[f"error {name}"].value == pytest.approx(np.mean(list(errors[name].values())))
        assert found[f"error {name} 4"].value == pytest.approx(errors[name][4])
    assert "relative mCE" not in rows_of("c", some_results(clean=False))


def test_without_frost_or_imagenet_there_is_no_mce() -> None:
    given = {key: values for key, values in some_results().items() if "frost" not in key}
    found = rows_of("c", given)
    assert "mCE" not in found and {"mCE-14", "relative mCE-14"} <= found.keys()
    assert not {"mCE", "mCE-14", "mFR"} & {
        *rows_of("c", some_results(), OTHER),
        *rows_of("p", some_results(), OTHER),
    }


def test_perturbations_have_the_rows_of_their_definition_and_divide_by_a_file_alone(
    tmp_path: Path,
) -> None:
    given = some_results()
    flips, distances = (
        {name: float(given[f"p/{name}/{kind}"].mean()) for name in PERTURBATIONS} for kind in ("flips", "t5d")
    )
    found = rows_of("p", given)
    assert found["mFR"].value == pytest.approx(measures.mfr(flips))
    assert found["mean flip probability"].value == pytest.approx(np.mean(list(flips.values())))
    assert found["mean top-5 distance"].value == pytest.approx(np.mean(list(distances.values())))
    assert found["Zipf distance tilt"].value == pytest.approx(given["p/tilt/zipf"].mean())
    assert "mT5D" not in found
    half = rows_of("p", given, distances={name: 2 * value for name, value in distances.items()})
    assert half["mT5D"].value == pytest.approx(0.5)
    table = tmp_path / "t5d.json"
    table.write_text(json.dumps(dict.fromkeys(PERTURBATIONS, 19)))
    with pytest.raises(InputError, match="gaussian_noise is 19; a top-5 distance"):
        imagenet_like.measured(MODEL, tmp_path / "none", tests=("clean",), t5d=table)


def test_notes_of_attacks_have_their_steps_and_what_they_do_not_prove() -> None:
    found = rows_of("pgd", some_results())
    assert found.keys() == {"top1 at 16/255", "top1 at 16/255, random start"}
    fgsm = rows_of("fgsm", some_results())
    assert list(fgsm) == [f"top1 at {eps}/255" for eps in (2, 4, 8, 16)]
    assert all("are weak attacks" in row.note for row in (*found.values(), *fgsm.values()))
    assert "10 steps of 4/255" in found["top1 at 16/255"].note


def test_every_test_of_a_model_of_imagenet_has_rows(tmp_path: Path) -> None:
    data = imagenet_like.write_images(tmp_path, each=2)
    tests = ("clean", "calibration", "c", "p", "fgsm", "pgd")
    found = imagenet_like.measured(MODEL, data, tests=tests, fast=True)
    assert {test for test, _ in found} == set(tests)
    assert {("calibration", "rms"), ("c", "relative mCE"), ("p", "mFR")} <= {
        (test, measure.removesuffix("-14")) for test, measure in found
    }


def test_a_test_that_broke_off_has_rows_of_its_parts_and_no_mean() -> None:
    some = {key: values for key, values in some_results().items() if "noise" in key}
    found = [row.measure for row in part_rows("c", some)]
    assert found[:3] == ["error gaussian_noise", "error shot_noise", "error impulse_noise"]
    assert not [measure for measure in found if "mean" in measure or "mCE" in measure]
    assert list(part_rows("c", {})) == [] and list(part_rows("fgsm", {})) == []


# --- intervals ---


@pytest.mark.parametrize(("right", "count"), [(0, 40), (40, 40), (7, 40), (1, 3)])
def test_an_interval_of_right_and_wrong_is_wilsons(right: int, count: int) -> None:
    from scipy import stats

    found = summary.mean(np.arange(count) < right)
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found["low"] <= found["value"] == right / count <= found["high"] <= 1


def test_an_interval_of_shares_stays_among_them() -> None:
    few: Results = {f"p/{name}/flips": np.array([0, 0, 0.4], np.float32) for name in PERTURBATIONS}
    few |= {f"c/{name}/1": np.array([True, True, False]) for name in CORRUPTIONS}
    numbers = summary.summarize(few)
    assert numbers["p"]["low"] == 0 and numbers["c"]["low"] == 0 and numbers["c"]["high"] < 1


# --- anchors ---


def test_published_figures_stand_beside_the_whole_set_by_the_same_protocol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beside = "mce of NoisyStudent EfficientNet-L2"
    given = some_results()
    assert beside not in rows_of("c", given, protocol="released-299")  # 20 images are not the set
    monkeypatch.setattr(rows, "_VAL", COUNT)
    assert rows_of("c", given, protocol="released-299")[beside].value == pytest.approx(0.283)
    assert rows_of("c", given, protocol="released-224")[beside].value == pytest.approx(0.300)
    assert beside not in rows_of("c", given)  # regenerated
    assert beside not in rows_of("c", given, OTHER, protocol="released-299")
    assert rows_of("p", given, protocol="released-299")["mfr of NoisyStudent EfficientNet-L2"].value == 0.122
    attacked = "top1 at 2/255 of NoisyStudent EfficientNet-L2"
    assert attacked not in rows_of("fgsm", given)  # theirs are of 800 pixels
    large = imagenet_like.predictor(800)
    assert rows_of("fgsm", given, large)[attacked].value == pytest.approx(0.8)
    assert "top1 at 16/255 of NoisyStudent EfficientNet-L2" in rows_of("pgd", given, large)


def test_a_published_set_is_known_by_its_size_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 224 and 299 pixels it is another protocol; of a sample and of regenerated images it is none."""
    monkeypatch.setattr(rows, "_VAL", 4)
    files = [f"{imagenet_like.CLASSES[kind]}/{kind}.png" for kind in (1, 2, 3, 4)]
    for side in (32, 40):
        images = imagenet_like.noise(4, side)
        for name in CORRUPTIONS:
            for severity in range(1, 6):
                made = corrupt(images, "contrast", severity, seed=0, rows=np.arange(4))
                copies.write_folder(tmp_path / f"of-{side}", name, severity, [made], files)
    seen: list[str] = []

    def find(_test: str, protocol: str) -> tuple[()]:
        seen.append(protocol)
        return ()

    monkeypatch.setattr(anchors, "find", find)
    for side in (32, 40):
        found = imagenet_like.measured(MODEL, tmp_path / f"of-{side}", tests=("c",))
        assert found["c", "mCE"].note.startswith(f"the published images in {tmp_path / f'of-{side}'}")
    assert seen == ["released-32", "released-40"]
    found = imagenet_like.measured(MODEL, tmp_path / "of-32", tests=("c",), fast=True)
    assert "a stratified sample, severities 1, 3, 5 only" in found["c", "mCE"].note
    assert seen == ["released-32", "released-40", ""]


# --- where rows go ---


def test_the_case_of_an_ending_has_no_meaning(tmp_path: Path) -> None:
    for ending in ("json", "JSON", "csv", "CSV"):
        write_rows([Row("clean", "top1", 0.5)], tmp_path / ending / f"rows.{ending}")
    written = {path.name: path.read_text() for path in tmp_path.glob("*/*")}
    assert json.loads(written["rows.json"])[0]["value"] == 0.5
    assert written["rows.JSON"] == written["rows.json"] != written["rows.csv"] == written["rows.CSV"]


def test_a_place_that_cannot_be_written_is_reported_before_hours_go_into_it(tmp_path: Path) -> None:
    check_out(tmp_path / "new" / "rows.csv", suffixes=SUFFIXES)
    (tmp_path / "file").write_text("")
    for out, message in (
        (tmp_path / "rows.txt", "must end in .json or .csv"),
        (tmp_path / "file" / "rows.json", "cannot be written: "),
        (tmp_path / "new" / "rows.csv", None),
    ):
        if message is None:
            write_rows([Row("clean", "top1", 0.5)], out)
            assert out.read_text().splitlines()[1] == "clean,top1,0.5,,,"
            continue
        with pytest.raises(InputError, match=message):
            check_out(out, suffixes=SUFFIXES)
        with pytest.raises(InputError, match=message):
            write_rows([], out)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match="which is a folder"):
        check_out(tmp_path / "folder.json")
