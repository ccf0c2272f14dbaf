from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import fake_run
import numpy as np
import plotly.graph_objects as go
import pytest
from html_page import Page, page, section

from noisystudent.errors import InputError, RunError
from noisystudent.report import build


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run.write_run(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture
def run(full: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(full, tmp_path / "run"))


def test_a_finished_run_has_every_section_in_order(full: Path) -> None:
    order = (
        "verdict accuracy robustness curves confidence balance "
        "reliability confusion mistakes gallery data environment config files"
    )
    assert page(full).sections == order.split()


def test_it_needs_nothing_outside_itself(full: Path) -> None:
    html = build(full).read_text(encoding="utf-8")
    report = Page(html)
    for tag, attributes in report.tags:
        assert tag != "link"
        for name in ("src", "href", "action", "srcset", "poster", "data"):
            target = attributes.get(name) or "#"
            beside = (tag, name) == ("a", "href") and (full / target).is_file()  # followed by a click only
            assert beside or target.startswith(("#", "data:image/jpeg;base64,"))
    assert "url(" not in html.partition("</style>")[0]
    assert sum("plotly.js v" in script for script in report.scripts) == 1
    assert len(report.scripts) == 3


def test_the_policy_allows_exactly_the_scripts_of_the_page(full: Path) -> None:
    from base64 import b64encode
    from hashlib import sha256

    report = page(full)
    (policy,) = (
        a["content"] or "" for _, a in report.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    digests = {
        f"'sha256-{b64encode(sha256(s.encode()).digest()).decode()}'" for s in report.scripts if s[0] != "{"
    }
    assert set(policy.partition("script-src ")[2].split()) == digests
    assert policy.startswith("default-src 'none'")


def test_the_same_files_give_the_same_bytes(full: Path, tmp_path: Path) -> None:
    assert build(full).read_bytes() == build(full, tmp_path / "elsewhere" / "again.html").read_bytes()


def test_every_number_of_the_verdict_is_there(full: Path) -> None:
    text = page(full).text
    assert fake_run.VERDICT["sentence"] in text
    assert all(line in text for line in fake_run.VERDICT["headline"])
    assert all(reason in text for reason in fake_run.VERDICT["reasons"])
    for row in fake_run.VERDICT["comparisons"].values():
        for key in ("difference", "low", "high"):
            assert f"{100 * row[key]:+.2f}" in text
        assert f"{row['wins']:,} won, {row['losses']:,} lost of {row['n']:,}" in text
    assert "p = 0.00042" in text
    assert "p < 0.000001" in text


def test_every_score_is_in_the_table(full: Path) -> None:
    text = page(full).text
    for path in full.glob("iteration-*/evaluation.json"):
        for sets in json.loads(path.read_text())["models"].values():
            for scores in sets.values():
                assert f"{scores['top1']:.2%}".replace("%", "\u202f%") in text
                assert f"{scores['nll']:.3f}" in text


def test_plotly_accepts_every_figure(full: Path) -> None:
    figures = page(full).figures
    assert len(figures) == 9 + 2 * 3
    for figure in figures.values():
        go.Figure(json.loads(re.sub(r'"--[a-z0-9-]+"', '"#123456"', json.dumps(figure))))


def test_every_figure_has_an_element_and_every_colour_a_variable(full: Path) -> None:
    html = build(full).read_text(encoding="utf-8")
    report = Page(html)
    places = {(a.get("id") or "").removeprefix("figure-") for _, a in report.tags if a.get("class") == "plot"}
    assert places == set(report.figures)
    style = html.partition("</style>")[0]
    for name in set(re.findall(r'"(--[a-z0-9-]+)"', json.dumps(report.figures))):
        assert style.count(f"{name}:") == 2  # light and dark


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = fake_run.write_hostile_run(tmp_path / "run <b>'\"&amp;")
    report = page(run)
    assert len(report.scripts) == 3
    assert not any(name.startswith("on") for _, attributes in report.tags for name in attributes)
    assert not any(attributes.get("src") == "x" for _, attributes in report.tags)
    assert report.text.count(fake_run.HOSTILE) >= 9
    assert "{{ 7 * 7 }}" in report.text
    assert any(attributes.get("title") == fake_run.HOSTILE for _, attributes in report.tags)
    # Plotly reads the texts of figures as HTML, so they must be escaped twice.
    assert "<" not in re.sub(r"</?extra>", "", json.dumps(report.figures))


def test_a_name_that_was_not_utf8_does_not_stop_the_report(run: Path) -> None:
    gallery = json.loads((run / "iteration-1" / "gallery.json").read_text())
    gallery["classes"][0]["images"][0]["id"] = "caf\udce9.jpg"
    fake_run.write_json(run / "iteration-1" / "gallery.json", gallery)
    (run / "data" / "ledger.csv").write_bytes(b"set,id,reason\npool,caf\xe9.jpg,empty\n")
    report = page(run)
    assert "caf\ufffd.jpg" in report.text
    assert any(attributes.get("title") == "caf?.jpg" for _, attributes in report.tags)


FILES = (
    "config.yaml environment.json data verdict.json iteration-0 iteration-1 iteration-2 iteration-3 "
    "iteration-3/control iteration-3/evaluation.json iteration-0/teacher/metrics.jsonl "
    "iteration-3/student/predictions-test.npz data/dataset.json data/ledger.csv data/leaks.csv"
)


@pytest.mark.parametrize("name", FILES.split())
def test_any_one_thing_may_be_missing(run: Path, name: str) -> None:
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert page(run).sections[0] == "verdict"


def test_a_run_that_has_only_begun_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: new\n")
    report = page(tmp_path)
    assert report.sections == ["verdict", "config"]
    assert "no verdict yet" in report.text
    assert "accuracy, changes, curves, confidence, balance" in report.text
    assert "Robustness was not measured. Add --evaluate.tests" in report.text


def test_without_control_or_test_no_gain_is_claimed(run: Path) -> None:
    shutil.rmtree(run / "iteration-3" / "control")
    for path in run.glob("iteration-*/*/predictions-test.npz"):
        path.unlink()
    for path in run.glob("iteration-*/evaluation.json"):
        content = json.loads(path.read_text())
        content["models"].pop("control", None)
        content["robustness"].pop("control", None)
        for sets in content["models"].values():
            del sets["test"]
        fake_run.write_json(path, content)
    fake_run.write_json(
        run / "verdict.json", {"sentence": "Without a control no gain is claimed.", "improved": None}
    )
    text = page(run).text
    assert "improved" not in text.lower()
    assert "There is no control" in text
    assert "There is no test set" in text
    assert "Accuracy of the val images" in text
    (run / "verdict.json").unlink()
    assert "There is no control" not in page(run).text, "an unfinished run has none yet"


def test_a_verdict_on_val_without_control(run: Path) -> None:
    rows = {"teacher": fake_run.VERDICT["comparisons"]["teacher"], "control": None}
    fake_run.write_json(run / "verdict.json", {"set": "val", "improved": None, "comparisons": rows})
    text = section(run, "verdict").text
    assert "+29.47" in text
    assert "same images of val" in text
    assert "against the control" not in text


def test_many_classes_give_ranks_and_pairs_instead_of_names_and_a_matrix(tmp_path: Path) -> None:
    run = fake_run.write_run(tmp_path / "wide", classes=[f"n{i:04d}" for i in range(120)], iterations=1)
    report = page(run)
    assert not any(name.startswith("confusion") for name in report.figures)
    assert len(report.figures["gains"]["data"][1]["y"]) == 30
    assert "confusion" in report.sections
    assert report.figures["balance-1"]["data"][0]["type"] == "scatter"
    assert "the first 100 of 120 classes" in report.text


def test_a_long_ledger_is_cut_and_counted(full: Path) -> None:
    text = page(full).text
    assert "The first 200 of 230." in text
    assert "00199.jpg" in text
    assert "00200.jpg" not in text


def test_numbers_that_are_none_or_nan_are_dashes(run: Path) -> None:
    path = run / "iteration-0" / "evaluation.json"
    scores = {"top1": 0.1, "top5": None, "nll": float("nan"), "ece": float("inf"), "brier": 0.9}
    fake_run.write_json(path, {"models": {"teacher": {"val": scores, "test": scores}}})
    lines = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0}]
    (run / "iteration-0/teacher/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = run / "iteration-0/teacher/predictions-test.npz"
    np.savez(file, probs=np.full((5, 10), np.nan, np.float32), labels=np.zeros(5, np.int64))
    report = page(run)
    assert report.text.count("–") >= 6
    (loss,) = (t for t in report.figures["curves"]["data"] if t["name"] == "teacher")
    assert loss["y"] == [None, 1.0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("verdict.json", "{"),
        ("verdict.json", "[]"),
        ("iteration-0/teacher/metrics.jsonl", '{"step": 1, "loss": 2}\nnonsense\n{"step": 3, "loss": 1}\n'),
        ("iteration-0/teacher/metrics.jsonl", "null\n"),
        ("iteration-0/teacher/metrics.jsonl", '{"step": 1, "loss": 2}\n\udcff\n'),  # no UTF-8
        ("iteration-0/teacher/predictions-test.npz", "PK"),
    ],
)
def test_a_damaged_file_is_named(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content, errors="surrogateescape")
    with pytest.raises(RunError, match=Path(name).name):
        build(run)


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="not a run directory"):
            build(path)
    assert list(tmp_path.iterdir()) == []


def test_one_model_alone_is_not_compared(run: Path) -> None:
    for index in (1, 2, 3):
        shutil.rmtree(run / f"iteration-{index}")
    report = page(run)
    assert "accuracy" in report.sections
    assert "accuracy" not in report.figures
    assert "The best value of each column" not in report.text


def test_a_section_that_is_no_mapping_is_one_line(run: Path) -> None:
    (run / "config.yaml").write_text("evaluate: 3\n")
    with pytest.raises(RunError, match=r"config.yaml: evaluate is 3, not a mapping; run its recipe again"):
        build(run)


def test_a_place_that_cannot_be_written_is_named_without_a_flag(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", fail)
    with pytest.raises(InputError, match=r"^\S+/report.html cannot be written: Read-only file system$"):
        build(run)
    with pytest.raises(
        InputError, match=r"^--out is \S+, which cannot be written: .*; choose another place$"
    ):
        build(run, run / "other.html")
