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

HOSTILE = '<script>alert("1")</script>\'"><img src=x onerror=alert(2)>'
Columns = dict[str, Any]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run.write_run(tmp_path_factory.mktemp("runs") / "full", images=120)


@pytest.fixture(scope="module")
def text(full: Path) -> str:
    return section(full, "robustness").text


@pytest.fixture
def run(full: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(full, tmp_path / "run"))


def columns(run: Path) -> Iterator[tuple[str, Columns]]:
    for path in sorted(run.glob("iteration-*/evaluation.json")):
        for role, column in json.loads(path.read_text()).get("robustness", {}).items():
            yield f"{role} {path.parent.name[-1]}", column


@contextmanager
def rewritten(run: Path, index: int) -> Iterator[dict[str, Columns]]:
    """The columns of an iteration by role, written back."""
    path = run / f"iteration-{index}" / "evaluation.json"
    content = json.loads(path.read_text())
    yield content["robustness"]
    fake_run.write_json(path, content)


def change(run: Path, spoil: Callable[[Columns], object]) -> None:
    """Apply `spoil` to the columns of every model."""
    for index in range(4):
        with rewritten(run, index) as roles:
            for column in roles.values():
                spoil(column)


def arranged(run: Path) -> Columns:
    shown = robustness(read_run(run), {})
    assert shown
    return shown


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def sentences(found: Page) -> list[str]:
    return re.findall(r"Student \d+ against the (\w+)", found.text)


def test_every_number_of_the_columns_is_in_the_table(full: Path, text: str) -> None:
    for _, column in columns(full):
        attacked = (*column["fgsm"].values(), *column["pgd"].values())
        shares = (column["clean"], column["c"], column["p"], *attacked)
        assert all(f"{percent(share['value'])}\u202f%" in text for share in shares)
        for test in ("c", "p"):
            assert f"{percent(column[test]['low'])}–{percent(column[test]['high'])}" in text
        for value in (column["to_teacher"]["mce"], column["to_teacher"]["mfr"]):
            assert f"{value:.3f}" in text
        assert all(f"{column['calibration'][key]:.3f}" in text for key in ("ece", "rms", "aurra"))


def test_the_table_has_teacher_students_and_the_last_control(run: Path) -> None:
    with rewritten(run, 2) as roles:
        roles["control"] = roles["student"]
    shown = arranged(run)
    names = [model.name for model, _ in shown["rows"]]
    assert names == ["teacher", "student 1", "student 2", "student 3", "control 3"]


def test_the_best_of_each_column_is_the_lowest_error_and_the_highest_accuracy(full: Path) -> None:
    shown = arranged(full)
    known = dict(columns(full))
    marked: dict[tuple[str, str], list[float]] = {}
    for _, groups in shown["rows"]:
        for (title, heads), cells in zip(shown["groups"].items(), groups, strict=True):
            for head, cell in zip(heads, cells, strict=True):
                marked.setdefault((title, head.heading), []).extend([cell["value"]] if cell["best"] else [])
    assert marked["Corruptions", "Error"] == [min(c["c"]["value"] for c in known.values())]
    assert marked["Calibration", "ECE"] == [min(c["calibration"]["ece"] for c in known.values())]
    assert marked["Calibration", "AURRA"] == [max(c["calibration"]["aurra"] for c in known.values())]
    assert marked["FGSM, ε", "8"] == [max(c["fgsm"]["8"]["value"] for c in known.values())]
    assert all(len(values) == 1 for values in marked.values())


def test_a_sentence_a_rival_with_every_difference_and_interval(full: Path) -> None:
    found = section(full, "robustness")
    assert sentences(found) == ["control", "teacher"]
    minus = dict(columns(full))["student 3"]["minus"]
    for rows in minus.values():
        for test in ("clean", "c", "p", "fgsm/2", "fgsm/8"):
            value, low, high = (
                f"{100 * rows[test][key]:+.2f}".replace("-", "−") for key in ("value", "low", "high")
            )
            assert f"{value} ({low} to {high})" in found.text


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
def test_a_difference_is_good_or_bad_only_where_its_interval_leaves_out_0(
    run: Path, test: str, low: float | None, high: float | None, tone: str
) -> None:
    rows = {test: {"value": 0.02, "low": low, "high": high}}
    change(run, lambda column: column.update(minus={"control": rows}))
    shown = arranged(run)
    ((rival, (part,)),) = shown["minus"]
    assert (rival, part["tone"]) == ("control", tone)


def test_every_error_by_severity_is_shown_beside_the_control(full: Path, text: str) -> None:
    found = page(full)
    known = dict(columns(full))
    for name in ("student 3", "control 3"):
        errors = known[name]["c"]["errors"]
        (trace,) = (t for t in found.figures["robustness-c"]["data"] if t.get("name") == name)
        means = [sum(row.values()) / len(row) for row in errors.values()]
        assert trace["x"] == pytest.approx(means)
        cells = [*(v for row in errors.values() for v in row.values()), *means]
        assert all(percent(cell) in text for cell in cells)
        (flips,) = (t for t in found.figures["robustness-p"]["data"] if t.get("name") == name)
        assert flips["x"] == list(known[name]["p"]["flips"].values())


def test_the_mean_of_the_cells_is_the_error_of_the_table(full: Path) -> None:
    shown = arranged(full)
    name, groups = shown["corruptions"]["rows"][-1]
    assert name == "all"
    for model, cells in zip(shown["corruptions"]["models"], groups, strict=True):
        assert cells[-1]["value"] == pytest.approx(model.robustness["c"]["value"])
    shades = [cell["shade"] for _, pair in shown["corruptions"]["rows"] for cells in pair for cell in cells]
    assert max(shades) == 100 and min(shades) >= 0


# What a page without the test must no longer say.
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

    def spoil(column: Columns) -> None:
        column.pop(key)
        for rows in column.get("minus", {}).values():
            rows.pop(key, None)

    change(run, spoil)
    assert WORDS[key] not in section(run, "robustness").text


def test_only_what_was_made_or_attacked_is_explained(run: Path, text: str) -> None:
    made, weak = "regenerated, not ImageNet-C", "not that it is robust"
    assert made in text and weak in text and "constants of 32 pixels" in text
    change(run, lambda column: [column.pop(key) for key in ("c", "p", "fgsm", "pgd")])
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
    found = section(run, "robustness")
    assert sentences(found) == []
    assert not any((attributes.get("class") or "").endswith(" best") for _, attributes in found.tags)


def test_what_differs_from_the_protocol_is_said(run: Path, text: str) -> None:
    assert "plain mean of 15 corruptions." in text
    assert "frost (no photographs)" not in text

    def spoil(column: Columns) -> None:
        del column["c"]["errors"]["frost"]
        for row in column["c"]["errors"].values():
            del row["2"], row["4"]
        column |= {"frost": False, "constants": 64, "images": 1234}

    change(run, spoil)
    less = section(run, "robustness").text
    assert "without frost (no photographs): the plain mean of 14 corruptions" in less
    assert "at severity 1, 3, 5 alone" in less
    assert "constants of 64 pixels" in less
    assert "1,234 images of test" in less


def test_models_of_two_sizes_name_both_constants(run: Path) -> None:
    with rewritten(run, 3) as roles:
        roles["student"]["constants"] = 224
    assert "constants of 32 and 224 pixels" in section(run, "robustness").text


def test_ratios_without_a_value_and_nan_are_dashes(run: Path) -> None:
    def spoil(column: Columns) -> None:
        if column["to_teacher"]["mce"] != 1.0:
            column["to_teacher"] |= {"mce": None}
            column["c"]["errors"]["fog"]["3"] = float("nan")
            column["p"]["t5d"].pop("tilt")
            column["fgsm"]["8"]["value"] = float("nan")

    change(run, spoil)
    assert section(run, "robustness").text.count("–") >= 4 + 2 + 2 + 4
    assert "NaN" not in json.dumps(page(run).figures)


def test_hostile_names_stay_text(run: Path) -> None:
    def spoil(column: Columns) -> None:
        column["c"]["errors"][HOSTILE] = {HOSTILE: 0.5}
        column["p"]["flips"][HOSTILE] = column["p"]["t5d"][HOSTILE] = 0.5

    change(run, spoil)
    found = page(run)
    assert len(found.scripts) == 3
    assert not any(attributes.get("src") == "x" for _, attributes in found.tags)
    assert found.text.count(HOSTILE) >= 3
    assert "<" not in re.sub(r"</?extra>", "", json.dumps(found.figures))


def test_a_run_that_did_not_ask_has_no_such_section_and_says_how_to(run: Path) -> None:
    for index in range(4):
        with rewritten(run, index) as roles:
            roles.clear()
    found = page(run)
    assert "robustness" not in found.sections
    assert "evaluate.tests" in found.text
    assert ("a", {"href": "#robustness"}) not in found.tags


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
