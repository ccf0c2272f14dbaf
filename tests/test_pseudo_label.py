"""Labelling: killed, stopped, spoilt or changed, it goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from labeled_pool import CONFIG, column, contents, pool
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.errors import InputError, RunError, Stopped
from noisystudent.pseudo_label import label_images, read_targets, summary
from noisystudent.records import PseudoLabels
from noisystudent.runtime import StopFlag

torch.set_num_threads(1)


@pytest.mark.parametrize("classes", [6, 300])
@pytest.mark.parametrize("killed_at", [0, 1, 4, 6])
def test_a_killed_run_goes_on_with_the_part_in_hand(tmp_path: Path, killed_at: int, classes: int) -> None:
    whole = contents(pool(classes=classes).label(tmp_path / "whole"))
    said = pool(classes=classes)

    def die(call: int) -> None:
        if call == killed_at:
            raise KeyboardInterrupt

    said.before_call = die
    with pytest.raises(KeyboardInterrupt):
        said.label(tmp_path / "killed")
    assert len(list((tmp_path / "killed").iterdir())) == killed_at // 3  # three batches a part, no debris
    said.before_call, said.calls = (lambda call: None), 0
    assert contents(said.label(tmp_path / "killed")) == whole
    assert said.calls == 8 - killed_at // 3 * 3


@pytest.mark.parametrize("stopped_at", [0, 2, 5])
def test_a_signal_stops_between_batches_and_resumes(tmp_path: Path, stopped_at: int) -> None:
    whole = contents(pool().label(tmp_path / "whole"))
    said, stop = pool(), StopFlag()

    def signal(call: int) -> None:
        if call == stopped_at:
            stop.signal = "SIGTERM"

    said.before_call = signal
    with pytest.raises(Stopped):
        said.label(tmp_path / "stopped", stop=stop)
    assert said.calls == stopped_at + 1
    assert contents(said.label(tmp_path / "stopped")) == whole


def spoil_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def spoil_swap(path: Path) -> None:
    path.write_bytes(path.with_name("part-00000.parquet").read_bytes())


def spoil_text(path: Path) -> None:
    path.write_text("not Parquet")


def spoil_foreign(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)  # our footer is gone
    assert pq.read_metadata(path).num_rows == 10


@pytest.mark.parametrize("spoil", [spoil_half, spoil_swap, spoil_text, spoil_foreign, Path.unlink])
def test_only_a_spoilt_part_is_redone(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    said = pool()
    whole = contents(said.label(tmp_path))
    spoil(tmp_path / "part-00001.parquet")
    said.calls = 0
    assert contents(said.label(tmp_path)) == whole
    assert said.calls == 3


def test_whole_parts_are_kept_and_others_redone_when_anything_else_changes(tmp_path: Path) -> None:
    said = pool()
    said.label(tmp_path)
    said.calls = 0
    said.label(tmp_path)
    assert said.calls == 0
    said.label(tmp_path, replace(CONFIG, temperature=2.0))
    assert said.calls == 8
    said.content_hash = said.content_hash.copy()
    said.content_hash[12] ^= 1  # another image in row 12
    said.calls = 0
    said.label(tmp_path, replace(CONFIG, temperature=2.0))
    assert said.calls == 3
    smaller = pool(n=8)
    assert list(contents(smaller.label(tmp_path))) == ["part-00000.parquet"]
    assert column(PseudoLabels(tmp_path, 6), "row") == list(range(8))


def test_non_finite_logits_name_the_image(tmp_path: Path) -> None:
    said = pool()
    said.logits[13, 2] = torch.nan
    said.logits[14, 0] = torch.inf
    with pytest.raises(RunError, match=r"images/13\.png"):
        said.label(tmp_path)
    assert list(contents(PseudoLabels(tmp_path, 6))) == ["part-00000.parquet"]


def test_a_teacher_of_other_classes_missing_images_and_bad_top_k_are_refused(tmp_path: Path) -> None:
    said = pool()
    run = dict(content_hash=said.content_hash, config=CONFIG, out=tmp_path, stop=StopFlag())
    with pytest.raises(RunError, match=r"\(4, 6\), not \(4, 7\)"):
        label_images(said.predict, said.images, said.ids, num_classes=7, **run)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="8 images came for the 10 pool rows"):
        label_images(
            said.predict,
            lambda requests: said.images(rows[:3] for rows in requests),
            said.ids,
            num_classes=6,
            **run,
        )  # type: ignore[arg-type]
    with pytest.raises(InputError, match="top_k is 0"):
        said.label(tmp_path, replace(CONFIG, top_k=0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("classes", [3, 300])
def test_an_empty_pool(tmp_path: Path, classes: int) -> None:
    labels = pool(n=0, classes=classes).label(tmp_path / "labels")
    assert column(labels, "label") == []
    for hard in (False, True):
        targets = read_targets(labels, np.empty(0, dtype=np.int64), hard=hard, out=tmp_path / "t.npy")
        assert targets(np.empty(0, dtype=np.int64)).shape == (0, classes)
    found = summary(labels, truth=np.empty(0, dtype=np.int64))
    assert found["images"] == 0 and found["mean_confidence"] is None and found["accuracy"] is None


def test_images_are_asked_for_once_in_batches_that_lie_within_a_part(tmp_path: Path) -> None:
    said, asked = pool(), list[list[int]]()

    def images(requests: Iterator[NDArray[np.int64]]) -> Iterator[Tensor]:
        batches = list(requests)
        asked.append([len(rows) for rows in batches])
        return said.images(iter(batches))

    arguments = (said.predict, images, said.ids, said.content_hash)
    for _ in range(2):
        label_images(*arguments, num_classes=6, config=CONFIG, out=tmp_path, stop=StopFlag())
        (tmp_path / "part-00001.parquet").unlink()
    assert asked == [[4, 4, 2, 4, 4, 2, 4, 3], [4, 4, 2]]


def test_progress_counts_every_image_once_and_skipped_parts_too(tmp_path: Path) -> None:
    said, seen = pool(), []
    said.label(tmp_path)
    (tmp_path / "part-00001.parquet").unlink()
    label_images(
        said.predict, said.images, said.ids, said.content_hash, num_classes=6, config=CONFIG, out=tmp_path,
        stop=StopFlag(), progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert [done for done, _ in seen] == [10, 14, 18, 20, 20, 27]
    assert {total for _, total in seen} == {27}
