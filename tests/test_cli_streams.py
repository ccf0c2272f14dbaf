"""What a program reads stands alone on standard output, and a signal is heard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from noisystudent import inference
from noisystudent.errors import Stopped
from noisystudent.runtime import StopFlag


def test_predictions_are_all_that_stands_on_standard_output(
    finished: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noisystudent.console._PLAIN_SECONDS", -1.0)
    monkeypatch.setattr("noisystudent.inference.images._BATCH", 3)
    assert tiny.call("predict", finished, images / "val", "--format", "json") == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 12
    assert "predicting: " in said.err


def test_a_signal_stops_a_prediction(finished: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noisystudent.inference.images._BATCH", 3)
    stop = StopFlag()

    class Impatient(tiny.Heard):
        def progress(self, task: str, done: int, total: int) -> None:
            if task == "predicting":
                assert done == 3, "the next batch was asked for"
                stop.signal = "SIGTERM"

    predictor = inference.load_predictor(finished)
    with pytest.raises(Stopped):
        inference.predict(predictor, images / "val", stop=stop, voice=Impatient())


def test_a_report_says_how_many_images_there_were(finished: Path) -> None:
    counts = json.loads((finished / "data" / "dataset.json").read_text())["counts"]
    assert counts == {"test": 12, "val": 12, "labeled": 18, "pool": 42}
    page = (finished / "report.html").read_text()
    assert all(f"<dt>{name}</dt><dd>{count}</dd>" in page for name, count in counts.items())
