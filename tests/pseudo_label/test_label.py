"""Labelling continues after it was killed or stopped, and repeats damaged and changed parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from labeled_pool import CONFIG, column, contents, random_pool
from numpy.typing import NDArray
from tiny import Counted, Remembered
from torch import Tensor

from noisystudent.console import Progress
from noisystudent.errors import InputError, RunError, Stopped
from noisystudent.pseudo_label import iterate, label_images, read_targets, summary
from noisystudent.pseudo_label.parts import check_parts
from noisystudent.pseudo_label.resume import is_of_other_images
from noisystudent.records import Predict, PseudoLabels
from noisystudent.run.checksums import checksum
from noisystudent.run.part_index import PartIndex
from noisystudent.run.rundir import LabelsDir

torch.set_num_threads(1)


@pytest.mark.parametrize("classes", [6, 300])
@pytest.mark.parametrize("killed_at", [0, 1, 4, 6])
def test_a_killed_run_continues_with_the_unfinished_part(
    tmp_path: Path, killed_at: int, classes: int
) -> None:
    whole = contents(random_pool(classes=classes).label(tmp_path / "whole"))
    pool = random_pool(classes=classes)

    def die(call: int) -> None:
        if call == killed_at:
            raise KeyboardInterrupt

    pool.before_call = die
    with pytest.raises(KeyboardInterrupt):
        pool.label(tmp_path / "killed")
    assert len(list((tmp_path / "killed").glob("part-*"))) == killed_at // 3, "one part for three batches"
    pool.before_call, pool.calls = (lambda call: None), 0
    assert contents(pool.label(tmp_path / "killed")) == whole
    assert pool.calls == 7 - killed_at // 3 * 3
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {*whole, "parts.json"}, (
        "nothing temporary"
    )


@pytest.mark.parametrize("stopped_at", [0, 2, 5])
def test_a_signal_stops_between_batches_and_resumes(tmp_path: Path, stopped_at: int) -> None:
    whole = contents(random_pool().label(tmp_path / "whole"))
    pool, progress = random_pool(), Progress()

    def signal(call: int) -> None:
        if call == stopped_at:
            progress.stop.signal = "SIGTERM"

    pool.before_call = signal
    with pytest.raises(Stopped):
        pool.label(tmp_path / "stopped", progress=progress)
    assert pool.calls == stopped_at + 1
    assert contents(pool.label(tmp_path / "stopped")) == whole


def damage_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def damage_swap(path: Path) -> None:
    path.write_bytes(path.with_name("part-00000.parquet").read_bytes())


def damage_text(path: Path) -> None:
    path.write_text("not Parquet")


def damage_foreign(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)  # without the footer of a part
    assert pq.read_metadata(path).num_rows == 12


@pytest.mark.parametrize("damage", [damage_half, damage_swap, damage_text, damage_foreign, Path.unlink])
def test_only_a_damaged_part_is_made_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    pool = random_pool()
    whole = contents(pool.label(tmp_path))
    damage(tmp_path / "part-00001.parquet")
    pool.calls, progress = 0, Remembered()
    assert contents(pool.label(tmp_path, progress=progress)) == whole
    assert pool.calls == 3
    (line,) = progress.lines
    problem = "is missing" if damage is Path.unlink else "is damaged"
    assert line.startswith(f"labeling: part-00001.parquet {problem}; ")


def damage_image(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(2, table.field(2), table["content_hash"].take([1, *range(1, 12)])), path)


@pytest.mark.parametrize(
    "damage", [None, damage_half, damage_text, damage_foreign, damage_image, Path.unlink]
)
@pytest.mark.parametrize("index", [True, False])
def test_other_images_are_told_from_damage(
    tmp_path: Path, damage: Callable[[Path], None] | None, index: bool
) -> None:
    pool, other, folder = random_pool(), random_pool(), LabelsDir(tmp_path)
    other.content_hash = pool.content_hash[[1, *range(1, 27)]]
    pool.label(tmp_path)
    if damage is not None:
        damage(folder.part(1))
    if not index:
        folder.index.unlink()
    unknown = damage is damage_image and not index  # without a checksum it is a part of another image
    assert is_of_other_images(folder, pool.content_hash) == unknown
    assert is_of_other_images(folder, other.content_hash)


def damage_bit(path: Path) -> None:
    text = bytearray(path.read_bytes())
    text[len(text) // 2] ^= 1
    path.write_bytes(text)


def copy(path: Path) -> None:
    path.with_name("part-00000 (copy).parquet").write_bytes(path.read_bytes())


@pytest.mark.parametrize("damage", [damage_half, damage_swap, damage_bit, Path.unlink])
@pytest.mark.parametrize("name", ["part-00000.parquet", "part-00002.parquet", "parts.json"])
def test_no_damage_is_silent(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    labels = random_pool().label(tmp_path)
    check_parts(labels)
    damage(tmp_path / name)
    if (damage, name) != (damage_swap, "part-00000.parquet"):  # this one stays as it is
        with pytest.raises(RunError, match=f"{name} is (missing|damaged|missing or damaged); label the pool"):
            check_parts(labels)


@pytest.mark.parametrize("name", ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"])
def test_a_lost_part_is_noticed_by_every_reader(tmp_path: Path, name: str) -> None:
    labels = random_pool().label(tmp_path)
    (tmp_path / name).unlink()
    for read in (summary, lambda labels: list(iterate(labels, ["row"]))):
        with pytest.raises(RunError, match=r"begins at pool row|has labels of 24 of 27 images"):
            read(labels)


def test_a_copy_under_another_name_is_not_a_part(tmp_path: Path) -> None:
    labels = random_pool().label(tmp_path)
    before = summary(labels)
    copy(tmp_path / "part-00000.parquet")
    check_parts(labels)
    assert summary(labels) == before
    random_pool(n=8).label(tmp_path)
    assert (tmp_path / "part-00000 (copy).parquet").is_file(), "a file of the user was removed"


def test_complete_parts_are_kept_and_changed_ones_are_made_again(tmp_path: Path) -> None:
    pool = random_pool()
    pool.label(tmp_path)
    pool.calls = 0
    pool.label(tmp_path)
    assert pool.calls == 0
    pool.label(tmp_path, replace(CONFIG, temperature=2.0))
    assert pool.calls == 7
    pool.content_hash = pool.content_hash.copy()
    pool.content_hash[13] ^= 1  # another image in row 13
    pool.calls = 0
    pool.label(tmp_path, replace(CONFIG, temperature=2.0))
    assert pool.calls == 3
    smaller = random_pool(n=8)
    assert list(contents(smaller.label(tmp_path))) == ["part-00000.parquet"]
    assert column(PseudoLabels(tmp_path, 6), "row") == list(range(8))


def test_parts_of_an_older_version_are_labelled_again_with_one_line(tmp_path: Path) -> None:
    """Their confidence may have the temperature of the targets."""
    pool, config = random_pool(), replace(CONFIG, temperature=2.0)
    before = contents(pool.label(tmp_path, config))
    for path in LabelsDir(tmp_path).parts():
        table = pq.read_table(path)
        old = {**table.schema.metadata, b"format": b"noisystudent.pseudo_labels/1"}
        pq.write_table(table.replace_schema_metadata(old), path)
    folder = LabelsDir(tmp_path)
    PartIndex(folder, {"rows": 27}, {path.name: checksum(path) for path in folder.parts()}).write()
    with pytest.raises(RunError, match="label the pool again"):
        check_parts(PseudoLabels(tmp_path, 6))
    pool.calls, progress = 0, Remembered()
    assert contents(pool.label(tmp_path, config, progress)) == before
    assert pool.calls == 7
    assert progress.lines == ["labeling: parts of another version of this program are labelled again"]


def test_non_finite_logits_name_the_image(tmp_path: Path) -> None:
    pool = random_pool()
    pool.logits[13, 2] = torch.nan
    pool.logits[14, 0] = torch.inf
    with pytest.raises(RunError, match=r"images/13\.png"):
        pool.label(tmp_path)
    assert list(contents(PseudoLabels(tmp_path, 6))) == ["part-00000.parquet"]


def test_a_teacher_of_other_classes_missing_images_and_bad_top_k_are_refused(tmp_path: Path) -> None:
    pool = random_pool()

    def prepare(images: int, most: int) -> tuple[Predict, int]:
        return pool.predict, CONFIG.batch_size

    run: dict[str, Any] = dict(config=CONFIG, out=tmp_path, task="labeling", progress=Progress())
    run["content_hash"] = pool.content_hash
    with pytest.raises(RunError, match=r"\(4, 6\), not \(4, 7\)"):
        label_images(prepare, pool.images, pool.ids, num_classes=7, **run)
    with pytest.raises(RunError, match="9 images were read for 12 pool rows from row 0 on"):
        label_images(
            prepare,
            lambda requests: pool.images(rows[:3] for rows in requests),
            pool.ids,
            num_classes=6,
            **run,
        )
    with pytest.raises(InputError, match="top_k is 0"):
        pool.label(tmp_path, replace(CONFIG, top_k=0))
    assert LabelsDir(tmp_path).parts() == []


@pytest.mark.parametrize("classes", [3, 300])
def test_an_empty_pool(tmp_path: Path, classes: int) -> None:
    labels = random_pool(n=0, classes=classes).label(tmp_path / "labels")
    assert column(labels, "label") == []
    for hard in (False, True):
        targets = read_targets(labels, np.empty(0, dtype=np.int64), hard=hard, out=tmp_path / "t.npy")
        assert targets(np.empty(0, dtype=np.int64)).shape == (0, classes)
    values = summary(labels, truth=np.empty(0, dtype=np.int64))
    assert values["images"] == 0 and values["mean_confidence"] is None and values["accuracy"] is None


def test_images_are_requested_once_in_whole_batches(tmp_path: Path) -> None:
    pool, requested = random_pool(), list[list[int]]()

    def images(requests: Iterator[NDArray[np.int64]]) -> Iterator[Tensor]:
        batches = list(requests)
        requested.append([len(rows) for rows in batches])
        return pool.images(iter(batches))

    arguments = (lambda *_: (pool.predict, 4), images, pool.ids, pool.content_hash)
    for _ in range(2):
        label_images(
            *arguments, num_classes=6, config=CONFIG, out=tmp_path, task="labeling", progress=Progress()
        )
        (tmp_path / "part-00001.parquet").unlink()
    assert requested == [[4, 4, 4, 4, 4, 4, 3], [4, 4, 4]]


@pytest.mark.parametrize("part_size", [1, 5, 12, 100])
def test_the_size_of_parts_changes_no_batch_and_no_bit(tmp_path: Path, part_size: int) -> None:
    """A teacher like a real one: the last bits of its logits depend on the number of images in the batch."""

    def labels(folder: str, size: int) -> list[list[object]]:
        pool = random_pool()
        logits = pool.logits

        def predict(images: Tensor) -> Tensor:
            return logits[images[:, 0, 0, 0].long()] * (1 + 1e-6 * len(images))

        pool.predict = predict  # type: ignore[method-assign]
        made = pool.label(tmp_path / folder, replace(CONFIG, part_size=size))
        return [column(made, name) for name in ("row", "label", "confidence", "probs")]

    assert labels("parts", part_size) == labels("whole", 27)


def test_progress_counts_every_image_once_and_skipped_parts_too(tmp_path: Path) -> None:
    pool, progress = random_pool(), Counted()
    pool.label(tmp_path)
    (tmp_path / "part-00001.parquet").unlink()
    pool.label(tmp_path, progress=progress)
    assert [done for _, done, _ in progress.calls] == [19, 23, 27, 27]
    assert {(task, total) for task, _, total in progress.calls} == {("labeling", 27)}
