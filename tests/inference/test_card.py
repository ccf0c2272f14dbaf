"""The card of an exported model: readable by the hub's own reader, with the numbers of the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tiny
import yaml
from huggingface_hub import ModelCard
from tiny import Capture, call, refused

from noisystudent.inference.card import of_run
from noisystudent.run.rundir import RunDir


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


def test_a_first_teacher_has_its_own_entry_of_the_list(finished: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished, run.path)
    fields = run.read_config()
    plain = fields["teacher"]
    trained = [plain | {"model": plain["model"] | {"dropout": dropout}} for dropout in (0.3, 0.4)]
    run.config.write_text(yaml.safe_dump(fields | {"teachers": [{"model_from": "other"}, *trained]}))
    first = run.iteration(0).model("teacher")
    shutil.copytree(first.path, run.iteration(0).model("teacher-2").path)
    cards = [of_run(run.iteration(0).model(role).weights) for role in ("teacher", "teacher-2")]
    assert [card.learner.model.dropout for card in cards] == [0.3, 0.4]


def test_a_model_before_its_fine_tuning_has_its_own_scores(finished: Path, tmp_path: Path) -> None:
    """The robustness is of the weights before it, which the card of the others says."""
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished, run.path)
    student, file = run.iteration(1).model("student"), run.iteration(1).evaluation
    shutil.copytree(student.path, student.finetune.path)
    content = json.loads(file.read_text())
    scores = content["models"]["student"]["val"]
    content["models"]["student before finetuning"] = {"val": scores | {"top1": 0.25}}
    content["robustness"] = {"student": {"c": {"value": 0.5}}}
    file.write_text(json.dumps(content))
    for weights, top1 in ((student.weights, 0.25), (student.finetune.weights, scores["top1"])):
        card = card_of(weights.parent, tmp_path / str(top1))
        about: Any = card.data
        (result,) = (one for one in about.eval_results if one.dataset_split == "val")
        assert result.metric_value == round(top1, 4)
        after = weights == student.finetune.weights
        assert ("This is student-1 of" in card.text) == after
        assert ("It was measured before the fine-tuning" in card.text) == after


def test_it_may_lie_in_the_folder_that_is_exported(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "hub"
    words = ("export", finished, "--format", "timm", "--out", folder, "--card", folder / "README.md")
    assert call(*words) == 0
    capsys.readouterr()
    assert "This is student-1 of" in (folder / "README.md").read_text()
    assert refused(capsys, 2, *words).endswith(f"--out is {folder}, which exists; name a new folder")


def test_under_another_name_it_may_not_lie_there(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "hub"
    for card in ("CARD.md", "model.safetensors", "more/README.md"):
        words = ("export", finished, "--format", "timm", "--out", folder, "--card", folder / card)
        line = refused(capsys, 2, *words)
        assert line.endswith(
            f"--card is {folder / card}, which lies in --out; name it {folder / 'README.md'}"
        )
    assert not folder.exists()


def test_a_student_that_the_run_has_no_more(finished: Path, tmp_path: Path, capsys: Capture) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(finished, run.path)
    run.config.write_text(yaml.safe_dump(run.read_config() | {"students": []}))
    student = run.iteration(1).model("student").path
    words = ("--out", tmp_path / "model.safetensors", "--card", tmp_path / "card.md")
    line = refused(capsys, 2, "export", student, *words)
    assert f"is of iteration 1, and {run.config} has 0 students now" in line


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
