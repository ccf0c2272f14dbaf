"""The card of an exported model: readable by the hub's own reader, with the numbers of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
from huggingface_hub import ModelCard
from tiny import Capture, call, refused


def card_of(run: Path, folder: Path) -> ModelCard:
    words = ("export", run, "--out", folder / "model.safetensors", "--card", folder / "README.md")
    assert call(*words) == 0
    card: ModelCard = ModelCard.load(folder / "README.md")
    return card


def test_it_has_the_numbers_of_the_run(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    card = card_of(finished, tmp_path)
    line = capsys.readouterr().out.strip()
    verdict = json.loads((finished / "verdict.json").read_text())
    scores = json.loads((finished / "iteration-1" / "evaluation.json").read_text())["models"]["student"]
    about: Any = card.data
    assert about.license == "unknown" and about.library_name == "timm"
    results = {result.dataset_name: result.metric_value for result in about.eval_results}
    assert results == {
        f"{name} of {finished.name}": round(scores[name]["top1"], 4) for name in ("val", "test")
    }
    for text in (line, verdict["sentence"][1:], *(reason[1:] for reason in verdict["reasons"])):
        assert text in card.text
    for set_name, count in tiny.PER_CLASS.items():
        wanted = {"labeled": "labelled, for training", "pool": "unlabelled", "val": "val, for all choices"}
        assert f"| {wanted.get(set_name, set_name)} | {count * len(tiny.CLASSES)} |" in card.text
    assert "| RandAugment | rand-m3-n1 |" in card.text and "Robustness was not measured." in card.text


def test_only_a_run_has_one(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    card_of(finished, tmp_path)
    words = (tmp_path / "model.safetensors", "--out", tmp_path / "again.safetensors")
    capsys.readouterr()
    line = refused(capsys, 2, "export", *words, "--card", tmp_path / "new.md")
    assert "--card describes a model of a run, and " in line
    line = refused(capsys, 2, "export", finished, *words[1:], "--card", tmp_path / "README.md")
    assert line.endswith(
        f"--card is {tmp_path / 'README.md'}, which exists; name another file, or give --overwrite"
    )
    assert not (tmp_path / "again.safetensors").exists()
