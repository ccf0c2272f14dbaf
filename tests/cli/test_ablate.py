"""What `ablate` says when some of its runs have failed."""

from __future__ import annotations

from pathlib import Path

import tiny
import yaml
from tiny import Capture


def test_a_row_with_a_finished_seed_has_not_failed(images: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe, out = tiny.write_recipe(tmp_path / "tiny.yaml"), tmp_path / "out"
    cells = {"one": {"students": 0}, "longer": {"students": 0, "teacher": {"train": {"steps": 14}}}}
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump({"recipe": str(recipe), "base": "longer", "cells": cells})
    )
    mine = out / "one" / "seed-1" / "mine.txt"  # so this run cannot use its folder
    mine.parent.mkdir(parents=True)
    mine.touch()
    (out / ".noisystudent").write_text("study 1\n")
    words = ("ablate", tmp_path / "study.yaml", *tiny.flags(images), "--out", out, "--seeds", "0", "1")
    assert tiny.call(*words) == 1
    printed = capsys.readouterr()
    assert printed.err == "noisystudent: 1 of 4 runs failed (one/seed-1); see the table above\n"
    rows = tiny.table(printed.out[printed.out.index("cell ") :])
    assert {name: row.split()[0] for name, row in rows.items() if name != "page:"} == {
        "teacher": "2",
        "one": "1",
        "longer": "2",
    }
