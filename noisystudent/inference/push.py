"""Upload a model of a run to a Hugging Face hub: the folder that timm loads by name, with its model card."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from noisystudent.errors import InputError, RunError, first_line, require
from noisystudent.inference.card import model_card, of_run
from noisystudent.inference.export import export
from noisystudent.inference.load import find_model
from noisystudent.run.files import temporary_folder, write_text
from noisystudent.run.rundir import place_in_run


@dataclass(frozen=True, slots=True)
class Pushed:
    """A model on a hub.

    Attributes:
        line: a line of Python that loads it from there.
        files: names and sizes in bytes of its files.
        url: of the commit; None if nothing was uploaded.
    """

    line: str
    files: dict[str, int]
    url: str | None


def push(run: Path, repository: str, *, private: bool = False, dry_run: bool = False) -> Pushed:
    """Export the model that `predict` uses for timm, check it, and upload it as one commit.

    A repository that does not exist is made. The token is that of `hf auth login`, or of HF_TOKEN.

    Args:
        run: a run directory, or a model folder in one.
        repository: OWNER/NAME.
        private: the repository must be private; a new one is made so.
        dry_run: makes all files, and uploads nothing.

    Raises:
        InputError: there is no model of a run, timm cannot build it, the name of the repository is not valid,
            or it is public although `private` is true.
        RunError: the hub refuses it, or cannot be reached.
    """
    _check_name(repository)
    weights = find_model(run)
    require(
        place_in_run(weights) is not None,
        f"{run} is in no run, so it has no model card; give a run directory",
    )
    with temporary_folder() as parent:
        folder = parent / "model"
        exported = export(run, folder, "timm")
        # For the user of the hub, the name takes the place of the temporary folder.
        line = exported.line.replace(f"local-dir:{folder}", f"hf-hub:{repository}")
        write_text(folder / "README.md", model_card(of_run(weights), replace(exported, line=line)))
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        return Pushed(line, files, None if dry_run else _upload(folder, repository, private))


def _check_name(repository: str) -> None:
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"the repository is {repository!r}: {first_line(error)}") from error
    require("/" in repository, f"the repository is {repository!r}; give OWNER/NAME")


def _upload(folder: Path, repository: str, private: bool) -> str:
    """Upload the folder, and return the URL of the commit."""
    api = HfApi()
    try:
        # None: as the owner has chosen for new repositories.
        api.create_repo(repository, private=private or None, exist_ok=True)
        if not private or api.repo_info(repository).private:
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message="Upload the model"
            )
            return str(commit)
    except Exception as error:  # of the network, or of huggingface_hub: no token, no such owner, --offline
        raise RunError(
            f"{repository} cannot be uploaded: {first_line(error)}; log in with `hf auth login`,"
            " or set HF_TOKEN"
        ) from error
    raise InputError(f"--private is given, and {repository} exists and is public; make it private first")
