from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_run
import pytest
from html_page import Page, page, section
from hypothesis import given
from hypothesis import strategies as st

from noisystudent.report.read import Model, read_run
from noisystudent.report.robustness import dumbbells, robustness
from noisystudent.run.rundir import RunDir

HOSTILE = '<script>alert("1")</script>\'"><img src=x onerror=alert(2)>'
Results = dict[str, Any]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run.write_run(tmp_path_factory.mktemp("runs") / "full", images=120)


@pytest.fixture(scope="module")
def text(full: Path) -> str:
    return section(full, "robustness").text


@pytest.fixture
def run(full: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(full, tmp_path / "run"))


def model_results(run: Path) -> Iterator[tuple[str, Results]]:
    for path in sorted(run.glob("iteration-*/evaluation.json")):
        for role, results in json.loads(path.read_text()).get("robustness", {}).items():
            yield f"{role} {path.parent.name[-1]}", results


@contextmanager
def rewritten(run: Path, index: int) -> Iterator[dict[str, Results]]:
    """Yield the results of an iteration by role, and write them back after the block."""
    path = run / f"iteration-{index}" / "evaluation.json"
    content = json.loads(path.read_text())
    yield content["robustness"]
    fake_run.write_json(path, content)


def change(run: Path, edit: Callable[[Results], object]) -> None:
    """Apply `edit` to the results of every model."""
    for index in range(4):
        with rewritten(run, index) as roles:
            for results in roles.values():
                edit(results)


def arranged(run: Path) -> Results:
    content = robustness(read_run(RunDir(run)), {})
    assert content
    return content


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def sentences(report: Page) -> list[str]:
    return re.findall(r"Student \d+ against the (\w+)", report.text)


def test_every_result_is_in_the_table(full: Path, text: str) -> None:
    for _, results in model_results(full):
        attacked = (*results["fgsm"].values(), *results["pgd"].values())
        shares = (results["clean"], results["c"], results["p"], *attacked)
        assert all(f"{percent(share['value'])}\u202f%" in text for share in shares)
        for test in ("c", "p"):
            assert f"{percent(results[test]['low'])}–{percent(results[test]['high'])}" in text
        for value in (results["to_teacher"]["mce"], results["to_teacher"]["mfr"]):
            assert f"{value:.3f}" in text
        assert all(f"{results['calibration'][key]:.3f}" in text for key in ("ece", "rms", "aurra"))


def test_the_table_has_teacher_students_and_the_last_control(run: Path) -> None:
    with rewritten(run, 2) as roles:
        roles["control"] = roles["student"]
    content = arranged(run)
    names = [model.name for model, _ in content["rows"]]
    assert names == ["teacher", "student 1", "student 2", "student 3", "control 3"]


def test_the_best_of_each_column_is_the_lowest_error_and_the_highest_accuracy(full: Path) -> None:
    content = arranged(full)
    known = dict(model_results(full))
    marked: dict[tuple[str, str], list[float]] = {}
    for _, groups in content["rows"]:
        for (title, heads), cells in zip(content["groups"].items(), groups, strict=True):
            for head, cell in zip(heads, cells, strict=True):
                marked.setdefault((title, head.heading), []).extend([cell["value"]] if cell["best"] else [])
    assert marked["Corruptions", "Error"] == [min(c["c"]["value"] for c in known.values())]
    assert marked["Calibration", "ECE"] == [min(c["calibration"]["ece"] for c in known.values())]
    assert marked["Calibration", "AURRA"] == [max(c["calibration"]["aurra"] for c in known.values())]
    assert marked["FGSM, ε", "8"] == [max(c["fgsm"]["8"]["value"] for c in known.values())]
    assert all(len(values) == 1 for values in marked.values())


def test_each_rival_has_a_sentence_with_every_difference_and_interval(full: Path) -> None:
    report = section(full, "robustness")
    assert sentences(report) == ["control", "teacher"]
    minus = dict(model_results(full))["student 3"]["minus"]
    for rows in minus.values():
        for test in ("clean", "c", "p", "fgsm/2", "fgsm/8"):
            value, low, high = (
                f"{100 * rows[test][key]:+.2f}".replace("-", "−") for key in ("value", "low", "high")
            )
            assert f"{value} ({low} to {high})" in report.text


@pytest.mark.parametrize(
    ("test", "low", "high", "tone"),
    [
        ("clean", 0.01, 0.03, "good"),
        ("clean", -0.03, -0.01, "bad"),
        ("c", -0.03, -0.01, "good"),
        ("p", 0.01, 0.03, "bad"),
        ("c", -0.01, 0.01, "open"),
        ("clean", 0.0, 0.02, "open"),
        ("clean", None, None, "open"),
    ],
)
def test_a_difference_is_good_or_bad_only_if_its_interval_excludes_0(
    run: Path, test: str, low: float | None, high: float | None, tone: str
) -> None:
    rows = {test: {"value": 0.02, "low": low, "high": high}}
    change(run, lambda results: results.update(minus={"control": rows}))
    content = arranged(run)
    ((rival, (part,)),) = content["differences"]
    assert (rival, part["tone"]) == ("control", tone)


def test_every_error_by_severity_is_shown_beside_the_control(full: Path, text: str) -> None:
    report = page(full)
    known = dict(model_results(full))
    for name in ("student 3", "control 3"):
        errors = known[name]["c"]["errors"]
        (trace,) = (t for t in report.figures["robustness-c"]["data"] if t.get("name") == name)
        means = [sum(row.values()) / len(row) for row in errors.values()]
        assert trace["x"] == pytest.approx(means)
        cells = [*(v for row in errors.values() for v in row.values()), *means]
        assert all(percent(cell) in text for cell in cells)
        (flips,) = (t for t in report.figures["robustness-p"]["data"] if t.get("name") == name)
        assert flips["x"] == list(known[name]["p"]["flips"].values())


def test_the_mean_of_the_cells_is_the_error_of_the_table(full: Path) -> None:
    content = arranged(full)
    name, groups = content["corruptions"]["rows"][-1]
    assert name == "all"
    for model, cells in zip(content["corruptions"]["models"], groups, strict=True):
        assert cells[-1]["value"] == pytest.approx(model.robustness["c"]["value"])
    shades = [cell["shade"] for _, pair in content["corruptions"]["rows"] for cells in pair for cell in cells]
    assert max(shades) == 100 and min(shades) >= 0


# Text that a page without the results of the test does not have.
WORDS = {
    "clean": "clean top-1",
    "c": "Error by corruption",
    "p": "Flips by perturbation",
    "fgsm": "FGSM, ε",
    "pgd": "PGD, ε",
    "calibration": "AURRA",
    "minus": "Student 3 against",
    "to_teacher": "1.000",
}


@pytest.mark.parametrize("key", WORDS)
def test_any_test_may_be_missing(run: Path, text: str, key: str) -> None:
    assert WORDS[key] in text

    def edit(results: Results) -> None:
        results.pop(key)
        for rows in results.get("minus", {}).values():
            rows.pop(key, None)

    change(run, edit)
    assert WORDS[key] not in section(run, "robustness").text


def test_only_what_was_made_or_attacked_is_explained(run: Path, text: str) -> None:
    made, weak = "regenerated and not ImageNet-C itself", "not that it is robust"
    assert made in text and weak in text and "constants for 32 pixels" in text
    change(run, lambda results: [results.pop(key) for key in ("c", "p", "fgsm", "pgd")])
    less = section(run, "robustness").text
    assert made not in less and weak not in less
    assert "ECE" in less
    assert not {"robustness-c", "robustness-p"} & set(page(run).figures)


def test_without_control_the_rival_is_the_teacher(run: Path) -> None:
    with rewritten(run, 3) as roles:
        del roles["control"], roles["student"]["minus"]["control"]
    assert sentences(section(run, "robustness")) == ["teacher"]
    marks = [t["name"] for t in page(run).figures["robustness-c"]["data"] if t["mode"] == "markers"]
    assert marks == ["student 3", "teacher"]


def test_a_teacher_alone_is_not_compared(run: Path) -> None:
    for index in (1, 2, 3):
        shutil.rmtree(run / f"iteration-{index}")
    report = section(run, "robustness")
    assert sentences(report) == []
    assert not any((attributes.get("class") or "").endswith(" best") for _, attributes in report.tags)


def test_what_differs_from_the_protocol_is_noted(run: Path, text: str) -> None:
    assert "plain mean over 15 corruptions." in text
    assert "without frost" not in text

    def edit(results: Results) -> None:
        del results["c"]["errors"]["frost"]
        for row in results["c"]["errors"].values():
            del row["2"], row["4"]
        results |= {"frost": False, "constants": 64, "images": 1234}

    change(run, edit)
    less = section(run, "robustness").text
    assert "plain mean over 14 corruptions, without frost, whose photographs were not available" in less
    assert "at severity 1, 3, 5 only." in less
    assert "constants for 64 pixels" in less
    assert "1,234 images of test" in less


def test_models_of_two_sizes_name_both_constants(run: Path) -> None:
    with rewritten(run, 3) as roles:
        roles["student"]["constants"] = 224
    assert "constants for 32 and 224 pixels" in section(run, "robustness").text


def test_ratios_without_a_value_and_nan_are_dashes(run: Path) -> None:
    def edit(results: Results) -> None:
        if results["to_teacher"]["mce"] != 1.0:
            results["to_teacher"] |= {"mce": None}
            results["c"]["errors"]["fog"]["3"] = float("nan")
            results["p"]["t5d"].pop("tilt")
            results["fgsm"]["8"]["value"] = float("nan")

    change(run, edit)
    assert section(run, "robustness").text.count("–") >= 4 + 2 + 2 + 4
    assert "NaN" not in json.dumps(page(run).figures)


def test_hostile_names_stay_text(run: Path) -> None:
    def edit(results: Results) -> None:
        results["c"]["errors"][HOSTILE] = {HOSTILE: 0.5}
        results["p"]["flips"][HOSTILE] = results["p"]["t5d"][HOSTILE] = 0.5

    change(run, edit)
    report = page(run)
    assert len(report.scripts) == 3
    assert not any(attributes.get("src") == "x" for _, attributes in report.tags)
    assert report.text.count(HOSTILE) >= 3
    assert "<" not in re.sub(r"</?extra>", "", json.dumps(report.figures))


def test_a_run_without_robustness_tests_has_no_such_section_and_names_the_field(run: Path) -> None:
    for index in range(4):
        with rewritten(run, index) as roles:
            roles.clear()
    report = page(run)
    assert "robustness" not in report.sections
    assert "evaluate.tests" in report.text
    assert ("a", {"href": "#robustness"}) not in report.tags


shares = st.one_of(st.none(), st.floats(0, 1))


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=20))
def test_a_line_joins_the_marks_of_its_name(pairs: list[tuple[float | None, float | None]]) -> None:
    models = [Model(role, 1, [], [], {}, {}, {}) for role in ("student", "control")]
    names = [f"n{i}" for i in range(len(pairs))]
    series = [
        (m, dict(zip(names, own, strict=True)))
        for m, own in zip(models, zip(*pairs, strict=True), strict=True)
    ]
    line, *marks = dumbbells(names, series, "error")["data"]
    assert [mark["x"] for mark in marks] == [list(own) for own in zip(*pairs, strict=True)]
    for i, pair in enumerate(pairs):
        known = [value for value in pair if value is not None]
        ends = [min(known), max(known)] if known else [None, None]
        assert line["x"][3 * i : 3 * i + 3] == [*ends, None]
        assert line["y"][3 * i : 3 * i + 2] == [i, i]
