"""A model on a hub is the exported one with its card; nothing is uploaded where it should not be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny import Capture, call, output, refused

from noisystudent.inference import push

NAME = "somebody/colours"


class Hub:
    """In place of huggingface_hub's client: keeps what it is given, and has one repository or none."""

    def __init__(self, folder: Path, *, public: bool | None = None, error: Exception | None = None) -> None:
        self.folder, self.public, self.error = folder, public, error
        self.calls: list[str] = []

    def create_repo(self, repository: str, *, private: bool | None, exist_ok: bool) -> None:
        self.calls.append("create_repo")
        if self.error is not None:
            raise self.error
        assert repository == NAME and exist_ok
        if self.public is None:
            self.public = not private

    def repo_info(self, repository: str) -> Any:
        assert repository == NAME
        return SimpleNamespace(private=not self.public)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
        self.calls.append("upload_folder")
        assert repo_id == NAME and commit_message
        shutil.copytree(folder_path, self.folder)
        return f"https://hub.example/{repo_id}/commit/1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def make(**options: Any) -> Hub:
        made = Hub(tmp_path / "uploaded", **options)
        monkeypatch.setattr(push, "HfApi", lambda: made)
        return made

    return make


def test_the_uploaded_folder_is_the_export_and_its_card(
    finished: Path, hub: Callable[..., Hub], tmp_path: Path, capsys: Capture
) -> None:
    here = hub()
    listed = output(capsys, "push", finished, NAME, "--dry-run").splitlines()
    assert here.calls == []
    assert output(capsys, "push", finished, NAME, "--private").splitlines() == listed
    assert here.public is False and here.calls == ["create_repo", "upload_folder"]
    *files, line = listed
    assert [file.split()[0] for file in files] == sorted(path.name for path in here.folder.iterdir())
    card: Any = ModelCard.load(here.folder / "README.md")
    assert line in card.text and f"hf-hub:{NAME}" in line and "local-dir" not in card.text
    assert str(finished.parent) not in card.text
    assert call("export", finished, "--format", "timm", "--out", tmp_path / "exported") == 0
    one, other = (load_file(folder / "model.safetensors") for folder in (here.folder, tmp_path / "exported"))
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def test_a_private_model_never_goes_to_a_public_repository(
    finished: Path, hub: Callable[..., Hub], capsys: Capture
) -> None:
    here = hub(public=True)
    assert "exists and is public" in refused(capsys, 2, "push", finished, NAME, "--private")
    assert here.calls == ["create_repo"]


def test_what_cannot_be_uploaded_is_one_line(
    finished: Path, hub: Callable[..., Hub], tmp_path: Path, capsys: Capture
) -> None:
    here = hub(error=ConnectionError("no route to the hub\nmore of it"))
    line = refused(capsys, 1, "push", finished, NAME)
    assert "somebody/colours cannot be uploaded: no route to the hub; log in with `hf auth login`" in line
    for wrong in ("colours", "a/b/c", "somebody/ colours"):
        assert f"the repository is {wrong!r}" in refused(capsys, 2, "push", finished, wrong)
    shutil.copy(next(finished.glob("iteration-1/student/model.safetensors")), tmp_path / "model.safetensors")
    assert "is in no run" in refused(capsys, 2, "push", tmp_path / "model.safetensors", NAME)
    assert here.calls == ["create_repo"]
