from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from noisystudent.config import PseudoLabelConfig
from noisystudent.errors import InputError, RunError, Stopped
from noisystudent.pseudo_label import iterate, label_images, read_targets, summary
from noisystudent.records import PseudoLabels
from noisystudent.runtime import StopFlag

torch.set_num_threads(1)

CONFIG = PseudoLabelConfig(batch_size=4, part_size=10, top_k=5)


class Pool:
    """Images whose pixels are their row, and a teacher that answers `logits[row]`."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self.logits = torch.from_numpy(logits)
        self.content_hash = np.random.default_rng(0).integers(0, 256, (len(logits), 16), dtype=np.uint8)
        self.calls = 0
        self.before_call: Callable[[int], None] = lambda call: None

    def images(self, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        for start in range(0, len(rows), CONFIG.batch_size):
            chunk = torch.from_numpy(rows[start : start + CONFIG.batch_size].astype(np.uint8))
            yield chunk[:, None, None, None].expand(-1, 3, 2, 2)

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        return [f"images/{row}.png" for row in rows]

    def predict(self, images: Tensor) -> Tensor:
        self.before_call(self.calls)
        self.calls += 1
        return self.logits[images[:, 0, 0, 0].long()]

    def label(
        self, out: Path, config: PseudoLabelConfig = CONFIG, stop: StopFlag | None = None
    ) -> PseudoLabels:
        return label_images(
            self.predict,
            self.images,
            self.ids,
            self.content_hash,
            num_classes=self.logits.shape[1],
            config=config,
            out=out,
            stop=stop or StopFlag(),
        )

    def probs(self, temperature: float = 1.0) -> NDArray[np.float64]:
        return np.asarray(torch.softmax(self.logits.double() / temperature, dim=1))


def pool(n: int = 27, classes: int = 6, seed: int = 0) -> Pool:
    return Pool((np.random.default_rng(seed).normal(size=(n, classes)) * 3).astype(np.float32))


def contents(labels: PseudoLabels) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(labels.path.iterdir())}


def column(labels: PseudoLabels, name: str) -> list[object]:
    return [value for batch in iterate(labels, [name], 7) for value in batch[name].to_pylist()]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("classes", [6, 256])
def test_soft_targets_are_the_teachers_probabilities(
    tmp_path: Path, classes: int, temperature: float
) -> None:
    said = pool(classes=classes)
    labels = said.label(tmp_path / "labels", replace(CONFIG, temperature=temperature))
    rows = np.arange(27)[::-1].copy()
    found = read_targets(labels, rows, hard=False, out=tmp_path / "targets.npy")(np.arange(27))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, said.probs(temperature)[rows], rtol=2e-3, atol=1e-7)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_columns_are_what_the_record_promises(tmp_path: Path) -> None:
    said = pool()
    labels = said.label(tmp_path)
    assert column(labels, "row") == list(range(27))
    assert column(labels, "id") == said.ids(np.arange(27))
    assert column(labels, "content_hash") == [h.tobytes() for h in said.content_hash]
    assert column(labels, "label") == said.probs().argmax(axis=1).tolist()
    np.testing.assert_allclose(np.array(column(labels, "confidence")), said.probs().max(axis=1), rtol=1e-6)
    schema = pq.read_schema(tmp_path / "part-00002.parquet")
    assert [str(schema.field(n).type) for n in ("content_hash", "label", "confidence", "probs")] == [
        "fixed_size_binary[16]",
        "int32",
        "float",
        "fixed_size_list<element: halffloat>[6]",
    ]
    assert [pq.read_metadata(p).num_rows for p in sorted(tmp_path.iterdir())] == [10, 10, 7]


def test_ties_go_to_the_lowest_class(tmp_path: Path) -> None:
    logits = np.zeros((3, 300), dtype=np.float32)
    logits[1, [7, 250]] = 2
    labels = Pool(logits).label(tmp_path)
    assert column(labels, "label") == [0, 7, 0]
    assert [list(c) for c in column(labels, "top_classes")][:2] == [[0, 1, 2, 3, 4], [7, 250, 0, 1, 2]]  # type: ignore[call-overload]


@pytest.mark.parametrize("top_k", [1, 5, 400])
def test_above_256_classes_the_top_is_kept_and_the_tail_is_spread(tmp_path: Path, top_k: int) -> None:
    said = pool(classes=300)
    labels = said.label(tmp_path / "labels", replace(CONFIG, top_k=top_k))
    found = read_targets(labels, np.arange(27), hard=False, out=tmp_path / "t.npy")(np.arange(27))
    probs = said.probs()
    k = min(top_k, 300)
    top = np.argsort(-probs, axis=1)[:, :k]
    expected = np.repeat(
        (1 - np.take_along_axis(probs, top, 1).sum(1, keepdims=True)) / max(300 - k, 1), 300, axis=1
    )
    np.put_along_axis(expected, top, np.take_along_axis(probs, top, 1), axis=1)
    np.testing.assert_allclose(found, expected, rtol=3e-3, atol=2e-7)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert (found.argmax(axis=1) == probs.argmax(axis=1)).all()


def test_a_target_of_1000_classes_is_small(tmp_path: Path) -> None:
    labels = pool(n=20, classes=1000).label(tmp_path / "labels", replace(CONFIG, top_k=16))
    read_targets(labels, np.arange(20), hard=False, out=tmp_path / "t.npy")
    stored = np.load(tmp_path / "t.npy", mmap_mode="r")
    assert stored.dtype.itemsize == 16 * (2 + 2) + 4 < 100


@pytest.mark.parametrize("classes", [6, 300])
def test_hard_targets_are_one_hot_labels(tmp_path: Path, classes: int) -> None:
    said = pool(classes=classes)
    labels = said.label(tmp_path / "labels", replace(CONFIG, hard=True))
    positions = np.array([2, 0])
    found = read_targets(labels, np.array([5, 26, 11]), hard=True, out=tmp_path / "t.npy")(positions)
    np.testing.assert_array_equal(
        found, np.eye(classes, dtype=np.float32)[said.probs()[[11, 5]].argmax(axis=1)]
    )
    soft = contents(said.label(tmp_path / "soft", CONFIG))
    assert soft == contents(labels)  # hard is decided when read, not when written


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(0, 26), max_size=40), hard=st.booleans(), data=st.data())
def test_targets_follow_the_rows_in_any_order(tmp_path_factory, rows, hard, data) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.getbasetemp() / "any-order"
    labels = pool().label(folder / "labels")
    everything = read_targets(labels, np.arange(27), hard=hard, out=folder / "all.npy")
    some = read_targets(labels, np.array(rows, dtype=np.int64), hard=hard, out=folder / "some.npy")
    assert len(some) == len(rows)
    positions = np.array(
        data.draw(st.lists(st.sampled_from(range(len(rows))), max_size=9)) if rows else [], np.int64
    )
    wanted = np.array(rows, dtype=np.int64)[positions]
    np.testing.assert_array_equal(some(positions), everything(wanted))


def test_targets_pickle_as_a_path(tmp_path: Path) -> None:
    labels = pool(n=255, classes=250).label(tmp_path / "labels", replace(CONFIG, part_size=100))
    targets = read_targets(labels, np.arange(255), hard=False, out=tmp_path / "t.npy")
    packed = pickle.dumps(targets)
    assert len(packed) < 500 < 255 * 250
    np.testing.assert_array_equal(pickle.loads(packed)(np.array([3, 200])), targets(np.array([3, 200])))


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
    with pytest.raises(RunError, match="9 images came for the 10 pool rows"):
        label_images(said.predict, lambda rows: said.images(rows[:9]), said.ids, num_classes=6, **run)  # type: ignore[arg-type]
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


def test_missing_rows_and_missing_labels_are_named(tmp_path: Path) -> None:
    labels = pool().label(tmp_path / "labels")
    with pytest.raises(RunError, match="no label for pool row 27"):
        read_targets(labels, np.array([3, 27, 1]), hard=False, out=tmp_path / "t.npy")
    assert not (tmp_path / "t.npy").exists()
    with pytest.raises(RunError, match="holds no pseudo-labels"):
        summary(PseudoLabels(tmp_path, 6))


def test_names_of_parts_do_not_matter_for_reading(tmp_path: Path) -> None:
    labels = pool().label(tmp_path / "year=2020 'ü'")
    before = (column(labels, "id"), summary(labels))
    (labels.path / "part-00000.parquet").rename(labels.path / "z.parquet")
    assert (column(labels, "id"), summary(labels)) == before


def test_summary_adds_up(tmp_path: Path) -> None:
    said = pool()
    labels = said.label(tmp_path)
    truth = said.probs().argmax(axis=1)
    truth[:9] = -1
    truth[9:12] = (truth[9:12] + 1) % 6
    kept = np.array([0, 9, 20, 21])
    found = summary(labels, truth=truth, kept=kept)
    assert found["images"] == 27 == sum(found["per_class"]) == sum(found["confidence_histogram"]["counts"])
    assert found["per_class"] == np.bincount(said.probs().argmax(axis=1), minlength=6).tolist()
    expected = np.histogram(said.probs().max(axis=1), 20, (0, 1))[0].tolist()
    assert found["confidence_histogram"]["counts"] == expected
    assert sum(found["confidence_histogram"]["kept"]) == 4
    assert found["mean_confidence"] == pytest.approx(said.probs().max(axis=1).mean())
    assert found["accuracy"] == 15 / 18
    assert found["kept_accuracy"] == 2 / 3


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
