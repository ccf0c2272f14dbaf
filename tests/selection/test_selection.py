from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import selection_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from selection_reference import Mode, Row, in_mode

from noisystudent.config import SelectionConfig
from noisystudent.errors import InputError, RunError
from noisystudent.records import PseudoLabels, Selection
from noisystudent.selection import database, reassign, select, selected_rows, summary

# Exact bin edges, their float32 neighbours, and any other values.
edges = st.integers(0, 100).map(lambda k: np.float32(k / 100))
beside = st.tuples(edges, st.sampled_from([0.0, 1.0])).map(lambda p: np.nextafter(p[0], np.float32(p[1])))
confidences = st.one_of(edges, beside, st.floats(0, 1, width=32)).map(float)
pairs = st.lists(st.tuples(st.integers(0, 3), confidences), max_size=40)
configs = st.builds(
    SelectionConfig,
    mode=st.just("paper"),
    threshold=st.integers(0, 99).map(lambda k: k / 100),
    per_class=st.one_of(st.none(), st.integers(1, 12)),
    duplicate=st.booleans(),
    top_fraction=st.one_of(st.none(), st.integers(1, 100).map(lambda k: k / 100)),
    strength=st.sampled_from([0.25, 0.9, 1.0, 1.3]),
)
quick = settings(max_examples=40, deadline=None)
MODES: list[Mode] = ["paper", "official", "adaptive", "all"]


def run(
    rows: Sequence[Row], config: SelectionConfig, folder: Path, seed: int = 0, threads: int = 1
) -> Selection:
    labels = reference.write(folder / "labels", {"part-00000.parquet": rows})
    return select(labels, config, seed=seed, out=folder / "selection.parquet", threads=threads)


@quick
@given(pairs=pairs, config=configs)
def test_paper_equals_the_reference(pairs: list[tuple[int, float]], config: SelectionConfig) -> None:
    rows = reference.pool(pairs)
    with tempfile.TemporaryDirectory() as folder:
        assert reference.decisions(run(rows, config, Path(folder))) == reference.paper(rows, config)


@quick
@given(pairs=pairs, config=configs, seed=st.integers(-5, 2**40))
def test_official_equals_the_published_algorithm(
    pairs: list[tuple[int, float]], config: SelectionConfig, seed: int
) -> None:
    rows, config = reference.pool(pairs), in_mode(config, "official")
    with tempfile.TemporaryDirectory() as folder:
        selection = run(rows, config, Path(folder), seed)
        assert reference.decisions(selection) == reference.official(rows, config, seed)


@settings(max_examples=20, deadline=None)
@given(
    pairs=pairs,
    config=configs,
    order=st.randoms(use_true_random=False),
    cut=st.integers(0, 40),
    mode=st.sampled_from(MODES),
)
def test_order_and_names_of_files_change_nothing(pairs, config, order, cut, mode) -> None:  # type: ignore[no-untyped-def]
    config = in_mode(config, mode)
    rows = reference.pool(pairs)
    moved = rows.copy()
    order.shuffle(moved)
    moved = [r._replace(row=i) for i, r in enumerate(moved)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = run(rows, config, folder / "a", seed=7)
        labels = reference.write(
            folder / "b", {"part-00001.parquet": moved[:cut], "part-00000.parquet": moved[cut:]}
        )
        second = select(labels, config, seed=7, out=folder / "b.parquet", threads=2)
        assert reference.decisions(first) == reference.decisions(second)
        (rows_a, repeats_a), (rows_b, repeats_b) = selected_rows(first), selected_rows(second)
        hash_a, hash_b = [rows[i].content_hash for i in rows_a], [moved[i].content_hash for i in rows_b]
        assert (hash_a, repeats_a.tolist()) == (hash_b, repeats_b.tolist())


def large_pool(n: int, classes: int = 4, seed: int = 0, grid: int | None = None) -> list[Row]:
    """Many rows; with a grid, confidences tie often."""
    rng = np.random.default_rng(seed)
    confidence = rng.random(n) if grid is None else rng.integers(0, grid + 1, n) / grid
    return reference.pool(list(zip(rng.integers(0, classes, n).tolist(), confidence.tolist(), strict=True)))


@pytest.mark.parametrize("mode", MODES)
def test_the_bytes_do_not_depend_on_threads_and_memory(
    tmp_path: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "ROW_GROUP", 30_000)
    rows = large_pool(150_000, grid=50)
    labels = reference.write(tmp_path / "labels", {f"part-{i:05d}.parquet": rows[i::3] for i in range(3)})
    config = in_mode(SelectionConfig(per_class=15_000), mode)
    digests = set()
    for threads, limit in ((1, "2GB"), (4, "100MB")):
        out = tmp_path / f"{threads}.parquet"
        select(labels, config, seed=1, out=out, threads=threads, memory_limit=limit)
        digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
    assert len(digests) == 1
    groups = pq.read_metadata(out)
    assert groups.row_group(0).num_rows == 30_000
    assert groups.num_rows == 150_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.parquet", "4.parquet", "labels"]


@pytest.mark.parametrize("mode", MODES)
def test_labels_in_row_order_are_not_sorted_and_others_are(
    tmp_path: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "ROW_GROUP", 700)
    rows, config = large_pool(5_000, grid=50), in_mode(SelectionConfig(per_class=500), mode)
    parts = {f"part-{i:05d}.parquet": rows[i * 1000 : (i + 1) * 1000] for i in range(5)}
    ordered = select(reference.write(tmp_path / "o", parts), config, seed=1, out=tmp_path / "o.parquet")
    mixed = reference.write(
        tmp_path / "m", {"part-00000.parquet": rows[1::2], "part-00001.parquet": rows[0::2][::-1]}
    )
    assert select(mixed, config, seed=1, out=tmp_path / "m.parquet").path.read_bytes() == (
        ordered.path.read_bytes()
    )
    passes: list[bool] = []

    def counted(*arguments: Any) -> bool:
        passes.append(written(*arguments))
        return passes[-1]

    written = database._written
    monkeypatch.setattr(database, "_written", counted)
    select(PseudoLabels(tmp_path / "o", 4), config, seed=1, out=tmp_path / "o.parquet")
    assert passes == [True], "sorting would need memory for every row"


def test_paper_classes_have_exactly_k(tmp_path: Path) -> None:
    rows = [r for r in large_pool(2_000, seed=3) if r.label != 2 or r.row % 30 == 0]
    counts = summary(run(rows, SelectionConfig(per_class=300), tmp_path))
    assert [c["total"] for c in counts["classes"]] == [300] * 4 and counts["total"] == 1_200
    assert counts["classes"][2]["kept"] < 20 < counts["classes"][0]["kept"] == 300


def test_repeats_differ_by_at_most_one_and_are_larger_for_confident_images(tmp_path: Path) -> None:
    rows = reference.read(
        run(reference.pool([(0, 0.4), (0, 0.9), (0, 0.6)]), SelectionConfig(per_class=8), tmp_path)
    )
    assert [(r["row"], r["repeats"]) for r in rows] == [(0, 2), (1, 3), (2, 3)]


def test_k_is_the_mean_over_classes_with_candidates(tmp_path: Path) -> None:
    rows = reference.pool([(0, 0.9)] * 4 + [(1, 0.9)] * 1 + [(2, 0.1)] * 9)
    counts = summary(run(rows, SelectionConfig(), tmp_path))
    assert [c["total"] for c in counts["classes"]] == [3, 3, 0, 0]  # (4 + 1) / 2, halves up


def test_official_keeps_k_in_expectation_and_the_seed_matters(tmp_path: Path) -> None:
    rows = large_pool(8_000)
    config = SelectionConfig(mode="official", per_class=1_000)
    one, two = (run(rows, config, tmp_path / str(seed), seed) for seed in (1, 2))
    for selection in (one, two):
        totals = [c["total"] for c in summary(selection)["classes"]]
        # sd of a class is at most sqrt(n_t) / 2 < 17
        assert all(abs(total - 1_000) < 5 * 17 for total in totals)
    assert reference.decisions(one) != reference.decisions(two)


@pytest.mark.parametrize("mode", MODES)
def test_every_image_has_one_row_in_the_order_of_rows(tmp_path: Path, mode: Mode) -> None:
    rows = large_pool(500, grid=20)
    selection = run(rows, in_mode(SelectionConfig(per_class=60), mode), tmp_path)
    written = reference.read(selection)
    by_row = {r.row: r for r in rows}
    for r in written:
        assert tuple(r[f] for f in Row._fields) == by_row[r["row"]]  # type: ignore[index]
        assert (r["repeats"] > 0) == (r["reason"] == "kept")  # type: ignore[operator]
    kept = [r for r in written if r["repeats"]]
    assert [r["row"] for r in written] == list(range(500))
    counts = summary(selection)
    assert counts["images"] == 500 and counts["kept"] == len(kept) and counts["coverage"] == len(kept) / 500
    assert counts["total"] == sum(r["repeats"] for r in kept)  # type: ignore[misc]


def test_copies_of_one_image_are_separate_rows(tmp_path: Path) -> None:
    rows = [r._replace(content_hash=b"x" * 16) for r in reference.pool([(0, 0.9)] * 3)]
    written = reference.read(run(rows, SelectionConfig(per_class=2), tmp_path))
    assert [(r["row"], r["repeats"]) for r in written] == [(0, 1), (1, 1), (2, 0)]


def test_reassign_keeps_images_and_repeats_and_takes_the_new_labels(tmp_path: Path) -> None:
    rows = large_pool(400)
    before = run(rows, SelectionConfig(per_class=40), tmp_path / "before")
    moved = [r._replace(row=399 - r.row, label=3 - r.label, confidence=0.5) for r in rows]
    labels = reference.write(tmp_path / "after", {"part-00000.parquet": moved})
    after = reassign(before, labels, tmp_path / "after.parquet", threads=1)
    old = {r["content_hash"]: r for r in reference.read(before)}
    new = {r["content_hash"]: r for r in reference.read(after)}
    assert old.keys() == new.keys()
    for key, r in new.items():
        assert (r["repeats"], r["reason"]) == (old[key]["repeats"], old[key]["reason"])
        assert (r["row"], r["label"], r["confidence"]) == (399 - old[key]["row"], 3 - old[key]["label"], 0.5)  # type: ignore[operator]


def test_reassign_to_the_same_labels_is_the_same_file_even_with_copies(tmp_path: Path) -> None:
    rows = [r._replace(content_hash=bytes([r.row % 7]) * 16) for r in large_pool(60)]
    before = run(rows, SelectionConfig(per_class=10), tmp_path)
    labels = PseudoLabels(tmp_path / "labels", 4)
    after = reassign(before, labels, tmp_path / "again.parquet", threads=2)
    assert reference.decisions(after).total() == 60
    assert sum(r["repeats"] for r in reference.read(after)) == summary(before)["total"]  # type: ignore[misc]
    distinct = run(large_pool(60), SelectionConfig(per_class=10), tmp_path / "d")
    same = reassign(
        distinct, PseudoLabels(tmp_path / "d" / "labels", 4), tmp_path / "same.parquet", threads=2
    )
    assert same.path.read_bytes() == distinct.path.read_bytes()


def test_reassign_refuses_another_pool(tmp_path: Path) -> None:
    before = run(large_pool(20), SelectionConfig(), tmp_path)
    other = reference.write(tmp_path / "other", {"part-00000.parquet": large_pool(19)})
    with pytest.raises(InputError, match=r"19 images and .* has 20, of which 19 are the same"):
        reassign(before, other, tmp_path / "out.parquet", threads=1)
    with pytest.raises(InputError, match=r"4 classes, but .* has 5"):
        reassign(before, replace(other, num_classes=5), tmp_path / "out.parquet", threads=1)
    assert not (tmp_path / "out.parquet").exists()


# Names like a hive partition, with wildcards that match another folder, quotes, a backslash, Unicode.
ODD = ['it\'s "x"', "label=3", "a[bc]*?", "ü λ 图", "back\\slash", "semi;colon--"]


@pytest.mark.parametrize("name", ODD)
def test_paths_are_taken_literally(tmp_path: Path, name: str) -> None:
    rows = large_pool(30)
    reference.write(
        tmp_path / "abZZ" / "labels", {"part-00000.parquet": large_pool(7, seed=1)}
    )  # a[bc]*? as a pattern would match it
    selection = run(rows, SelectionConfig(), tmp_path / name)
    assert summary(selection)["images"] == 30
    assert reference.decisions(selection) == reference.paper(rows, SelectionConfig())
    assert len(selected_rows(selection)[0]) == summary(selection)["kept"]
    again = reassign(selection, PseudoLabels(tmp_path / name / "labels", 4), tmp_path / name / "re.parquet")
    assert reference.decisions(again) == reference.decisions(selection)


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_pool_and_absent_classes(tmp_path: Path, mode: Mode) -> None:
    config = SelectionConfig(mode=mode)
    nothing = run([], config, tmp_path / "none")
    rows, repeats = selected_rows(nothing)
    assert rows.shape == repeats.shape == (0,) and rows.dtype == np.int64 and repeats.dtype == np.int32
    assert summary(nothing)["coverage"] == 0 and len(summary(nothing)["classes"]) == 4
    single = summary(run(reference.pool([(2, 0.8)]), config, tmp_path / "one"))
    assert [c["kept"] for c in single["classes"]] == [0, 0, 1, 0]
    assert single["classes"][0] == {
        "label": 0, "predicted": 0, "above_threshold": 0, "kept": 0, "total": 0, "min_confidence": None,
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["paper", "official"])
def test_nothing_above_the_threshold(tmp_path: Path, mode: Mode) -> None:
    selection = run(reference.pool([(0, 0.2), (1, 0.1)]), SelectionConfig(mode=mode), tmp_path)
    assert {r["reason"] for r in reference.read(selection)} == {"below_threshold"}
    assert len(selected_rows(selection)[0]) == 0


def test_selected_rows_are_in_the_order_of_their_content_or_of_the_pool(tmp_path: Path) -> None:
    rows = large_pool(300)
    selection = run(rows, SelectionConfig(per_class=40), tmp_path)
    chosen, repeats = selected_rows(selection)
    kept = sorted((r for r in reference.read(selection) if r["repeats"]), key=lambda r: r["content_hash"])  # type: ignore[arg-type,return-value]
    assert chosen.tolist() == [r["row"] for r in kept]
    assert repeats.tolist() == [r["repeats"] for r in kept]
    epoch = repeats.sum()
    assert selected_rows(selection, epoch)[0].tolist() == chosen.tolist(), "one window is no window"
    chosen, repeats = selected_rows(selection, epoch - 1)
    assert [*zip(chosen, repeats, strict=True)] == sorted((r["row"], r["repeats"]) for r in kept)
    selection.path.write_bytes(selection.path.read_bytes()[:-40])
    with pytest.raises(RunError, match=r"selection\.parquet cannot be read"):
        selected_rows(selection)


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no pseudo-labels"):
        select(PseudoLabels(tmp_path / "empty", 4), SelectionConfig(), seed=0, out=tmp_path / "s.parquet")
    (tmp_path / "empty" / "part-00000.parquet").write_bytes(b"PAR1 half a file")
    with pytest.raises(RunError, match="cannot compute"):
        select(PseudoLabels(tmp_path / "empty", 4), SelectionConfig(), seed=0, out=tmp_path / "s.parquet")
    assert not (tmp_path / "s.parquet").exists()
