"""What is published, and where: Makefile, Dockerfile, workflows and metadata agree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE, DOCKERFILE = ((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "Dockerfile"))
WORKFLOWS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / ".github/workflows").iterdir()}
PYTHONS = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
TORCH = r"torch==([\d.]+) torchvision==([\d.]+)"


def target(name: str) -> str:
    """The lines of a target of the Makefile."""
    (lines,) = re.findall(rf"^{re.escape(name)}:.*\n((?:\t.*\n)+)", MAKEFILE, flags=re.MULTILINE)
    return str(lines)


def test_the_dockerfile_has_the_newest_python_the_torch_of_the_makefile_and_an_extra() -> None:
    assert re.findall(r"^FROM python:([\d.]+)-slim$", DOCKERFILE, flags=re.MULTILINE) == PYTHONS[-1:]
    (pinned,) = re.findall(TORCH, DOCKERFILE)
    assert [pinned] == re.findall(TORCH, target("$(STAMP)"))
    (extras,) = re.findall(r'"/src\[([\w,-]+)\]"', DOCKERFILE)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    for name in re.findall(r"^COPY (.+) /src", DOCKERFILE, flags=re.MULTILINE):
        assert all((ROOT / word).exists() for word in name.split())


def test_the_oldest_torch_that_is_tested_is_the_oldest_allowed() -> None:
    (oldest,) = re.findall(TORCH, target("floor"))
    bounds = {re.split("[><=]", text)[0]: text for text in PROJECT["dependencies"]}
    assert [bounds[name].split(",")[0] for name in ("torch", "torchvision")] == [
        f"{name}>={version.removesuffix('.0')}"
        for name, version in zip(("torch", "torchvision"), oldest, strict=True)
    ]


def test_workflows_try_every_python_and_pin_every_action() -> None:
    for job in ("check-and-test", "distribution"):
        assert yaml.safe_load(WORKFLOWS["ci.yml"])["jobs"][job]["strategy"]["matrix"]["python"] == PYTHONS
    for text in WORKFLOWS.values():
        for action in re.findall(r"uses: (.*)", text):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", action), action


def test_only_the_job_that_publishes_can_and_it_runs_no_code_of_the_repository() -> None:
    release = yaml.safe_load(WORKFLOWS["release.yml"])
    assert release["permissions"] == {"contents": "read"} and "permissions" not in release["jobs"]["build"]
    publish = release["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["needs"] == "build"
    assert [step for step in publish["steps"] if "run" in step or "checkout" in step["uses"]] == []


@pytest.mark.skipif(shutil.which("sed") is None, reason="there is no sed")
def test_a_release_has_absolute_links_and_names_its_repository(tmp_path: Path) -> None:
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    steps = yaml.safe_load(WORKFLOWS["release.yml"])["jobs"]["build"]["steps"]
    (code,) = (step["run"] for step in steps if step.get("name", "").startswith("Make the links"))
    here = {
        "GITHUB_SERVER_URL": "https://host.example",
        "GITHUB_REPOSITORY": "a/b",
        "GITHUB_REF_NAME": "v1.2.3",
    }
    subprocess.run(["bash", "-e", "-c", code], cwd=tmp_path, env=os.environ | here, check=True)
    links = re.findall(r"\]\(([^)\s]+)\)", (tmp_path / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 5 and [link for link in links if not link.startswith("https://")] == []
    assert "https://host.example/a/b/blob/v1.2.3/docs/models.md" in links
    assert "https://host.example/a/b/raw/v1.2.3/docs/images/report.png" in links, (
        "a picture, and not its page"
    )
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"] == {"Repository": "https://host.example/a/b"}
