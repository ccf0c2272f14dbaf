"""The agreement of several teachers: its column in the labels, and the rule that reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from noisystudent.config import PseudoLabelConfig, SelectionConfig
from noisystudent.console import Progress
from noisystudent.errors import InputError
from noisystudent.pseudo_label import label_images, summary
from noisystudent.records import PseudoLabels, Vote
from noisystudent.selection import select

VALUES = (1 / 3, 2 / 3, 1.0)
CONFIG = PseudoLabelConfig(batch_size=8, part_size=16, top_k=4)


def labeled(out: Path, *, classes: int = 4, seed: int = 0, images: int = 60, voters: int = 3) -> PseudoLabels:
    """Labels of three teachers, or of one, on random images."""
    rng = np.random.default_rng(seed)
    probs = torch.from_numpy(rng.dirichlet(np.full(classes, 0.5), images).astype(np.float32))
    agreement = torch.from_numpy(rng.choice(VALUES, images).astype(np.float32))

    def predict(rows: Tensor) -> Tensor | Vote:
        return Vote(probs[rows], agreement[rows]) if voters > 1 else probs[rows].log()

    return label_images(
        lambda count, most: (predict, 8),
        lambda requests: map(torch.from_numpy, requests),
        lambda rows: [str(row) for row in rows],
        rng.integers(0, 256, (images, 16), dtype=np.uint8),
        num_classes=classes,
        config=CONFIG,
        out=out,
        task="labels",
        progress=Progress(),
        voters=voters,
    )


def rows(path: Path) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return result


def labels_of(labels: PseudoLabels) -> dict[int, dict[str, Any]]:
    return {row["row"]: row for part in sorted(labels.path.glob("*.parquet")) for row in rows(part)}


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> PseudoLabels:
    return labeled(tmp_path_factory.mktemp("agreement") / "labels")


@pytest.mark.parametrize("classes", [4, 300], ids=["all probabilities", "top classes"])
def test_the_column_is_what_the_teachers_agree_on(tmp_path: Path, classes: int) -> None:
    several, one = (labeled(tmp_path / str(n), classes=classes, voters=n) for n in (3, 1))
    rng = np.random.default_rng(0)
    rng.dirichlet(np.full(classes, 0.5), 60)
    expected = rng.choice(VALUES, 60).astype(np.float32)
    of_several, of_one = labels_of(several), labels_of(one)
    for number, row in of_several.items():
        assert row.pop("agreement") == expected[number]
        assert row["confidence"] == pytest.approx(of_one[number]["confidence"], abs=1e-6)
        assert row.keys() == of_one[number].keys() and row["label"] == of_one[number]["label"]


@settings(max_examples=25, deadline=None)
@given(
    mode=st.sampled_from(["paper", "official", "adaptive", "threshold", "all"]),
    share=st.sampled_from([0.3, 0.5, 0.667, 0.7, 1.0]),
    threshold=st.sampled_from([0.0, 0.4, 0.7]),
    band=st.booleans(),
)
def test_only_images_with_enough_agreement_are_kept(
    labels: PseudoLabels, mode: Any, share: float, threshold: float, band: bool
) -> None:
    config = SelectionConfig(mode=mode, threshold=threshold, max_confidence=0.9 if band else 1.0)
    out = labels.path.parent / "selection.parquet"
    plain = rows(select(labels, config, seed=1, out=out).path)
    limited = rows(select(labels, replace(config, agreement=share), seed=1, out=out).path)
    stored = labels_of(labels)
    for before, after in zip(plain, limited, strict=True):
        enough = stored[after["row"]]["agreement"] >= share - 1e-3
        assert (after["reason"] == "teachers_disagree") == (not enough)
        assert enough or after["repeats"] == 0
        if mode in ("threshold", "all") and enough:  # each image is decided alone
            assert after == before
    # The others are decided as if the pool had no such images.
    alone = PseudoLabels(labels.path.parent / "alone", labels.num_classes)
    alone.path.mkdir(exist_ok=True)
    table = pa.concat_tables([pq.read_table(part) for part in sorted(labels.path.glob("*.parquet"))])
    pq.write_table(
        table.filter(pc.greater_equal(table["agreement"], share - 1e-3)), alone.path / "part-00000.parquet"
    )
    expected = rows(select(alone, config, seed=1, out=out).path)
    assert expected == [row for row in limited if row["reason"] != "teachers_disagree"]


def test_no_agreement_changes_nothing_and_full_agreement_keeps_a_subset(
    labels: PseudoLabels, tmp_path: Path
) -> None:
    def kept(**fields: Any) -> set[int]:
        config = SelectionConfig(mode="threshold", threshold=0.3, **fields)
        path = select(labels, config, seed=1, out=tmp_path / "s.parquet").path
        digests.append(path.read_bytes())
        return {row["row"] for row in rows(path) if row["repeats"]}

    digests: list[bytes] = []
    every, same, agreed = kept(), kept(agreement=0.0), kept(agreement=1.0)
    assert every == same and digests[0] == digests[1]
    assert set() < agreed < every
    assert agreed == {n for n in every if labels_of(labels)[n]["agreement"] == 1}


def test_the_share_must_be_one_of_several_teachers(tmp_path: Path) -> None:
    alone = labeled(tmp_path / "labels", voters=1)
    with pytest.raises(InputError, match="has no agreement of teachers, because one teacher") as error:
        select(alone, SelectionConfig(agreement=0.5), seed=1, out=tmp_path / "s.parquet")
    assert "\n" not in str(error.value)
    assert "agreement" not in summary(alone)


def test_the_summary_counts_every_image_once(labels: PseudoLabels) -> None:
    kept = np.arange(0, 60, 2)
    found = summary(labels, kept=kept)["agreement"]
    values = np.array([row["agreement"] for _, row in sorted(labels_of(labels).items())], np.float32)
    assert found["mean"] == pytest.approx(values.mean())
    assert [share for share, _, _ in found["shares"]] == sorted(set(values.tolist()))
    for share, images, of_kept in found["shares"]:
        assert (images, of_kept) == ((values == share).sum(), (values[kept] == share).sum())
