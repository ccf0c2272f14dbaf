"""Standard output has only results for programs, and a signal stops the work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from noisystudent.errors import Stopped
from noisystudent.inference.load import load_predictor
from noisystudent.inference.predict import predict


def test_standard_output_has_only_the_predictions(
    finished: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noisystudent.terminal._PLAIN_SECONDS", -1.0)
    monkeypatch.setattr("noisystudent.inference.predictor._BATCH", 3)
    assert tiny.call("predict", finished, images / "val", "--format", "json") == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)) == 12
    assert "predicting: " in printed.err


def test_a_signal_stops_a_prediction(finished: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noisystudent.inference.predictor._BATCH", 3)

    class StoppedEarly(tiny.Remembered):
        def advance(self, task: str, done: int, total: int, note: str = "") -> None:
            if task == "predicting":
                assert done == 3, "the work continued after the signal"
                self.stop.signal = "SIGTERM"

    predictor = load_predictor(finished)
    with pytest.raises(Stopped):
        predict(predictor, images / "val", progress=StoppedEarly())


def test_a_report_has_the_numbers_of_images(finished: Path) -> None:
    counts = json.loads((finished / "data" / "dataset.json").read_text())["counts"]
    assert counts == {"test": 12, "val": 12, "labeled": 18, "pool": 42}
    page = (finished / "report.html").read_text()
    assert all(f"<dt>{name}</dt><dd>{count}</dd>" in page for name, count in counts.items())
