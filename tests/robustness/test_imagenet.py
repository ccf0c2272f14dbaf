"""Class lists agree with those of timm and obey their rules; folders and labels map to the right class."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisystudent.errors import InputError
from noisystudent.metrics import classification
from noisystudent.robustness import imagenet
from noisystudent.robustness.imagenet import Subset

INFO = resources.files("timm") / "data" / "_info"


def words(name: str) -> list[str]:
    return (INFO / name).read_text(encoding="utf-8").split()


def test_class_lists_are_timms() -> None:
    assert list(imagenet.imagenet_classes()) == words("imagenet_synsets.txt")
    for test in ("a", "r"):
        kept = imagenet.subset(test)
        assert list(kept.wnids) == words(f"imagenet_{test}_synsets.txt")
        assert list(kept.classes) == [int(row) for row in words(f"imagenet_{test}_indices.txt")]


def test_class_lists_obey_their_rules() -> None:
    assert len(imagenet.imagenet_classes()) == 1000
    assert list(imagenet.imagenet_classes()) == sorted(set(imagenet.imagenet_classes()))
    a, r = imagenet.subset("a"), imagenet.subset("r")
    for kept in (a, r):
        assert len(kept.classes) == 200 and list(kept.classes) == sorted(set(kept.classes))
        assert [imagenet.imagenet_classes()[row] for row in kept.classes] == list(kept.wnids)
    assert len(set(a.wnids) & set(r.wnids)) == 86
    assert a.classes[:4] == (6, 11, 13, 15) and r.classes[-3:] == (981, 983, 988)


def test_v10_the_argmax_is_among_the_kept_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "imagenet_classes", lambda: tuple("abcdef"))
    kept = Subset("test", ("b", "d", "f"), (1, 3, 5))
    rows = [[2, 9, 1, 3, 0, 8], [7, 1, 6, 2, 5, 3], [0, 1, 2, 3, 4, 9], [5, 4, 9, 6, 1, 2]]
    logits = np.array(rows, dtype=np.float32)
    targets = np.array([2, 0, 1, 1])
    assert logits.argmax(axis=1).tolist() == [1, 0, 5, 2]
    found = imagenet.restrict(logits, kept)
    assert found.argmax(axis=1).tolist() == [0, 2, 2, 1]
    assert (found.argmax(axis=1) == targets).mean() == 0.25
    as_tensor = imagenet.restrict(torch.from_numpy(logits), kept)
    assert as_tensor.numpy().tolist() == found.tolist()
    assert classification.top_k(as_tensor.softmax(dim=1).numpy(), targets, 1) == 0.25


def test_only_a_model_of_all_classes_can_be_restricted() -> None:
    for shape in ((2, 10), (1000,), (2, 1001)):
        with pytest.raises(InputError, match="ImageNet-A needs a model of ImageNet's 1000 classes"):
            imagenet.restrict(torch.zeros(shape), imagenet.subset("a"))


@given(st.lists(st.integers(0, 999), min_size=1))
def test_labels_of_other_classes_are_unknown(labels: list[int]) -> None:
    kept = imagenet.subset("r")
    found = imagenet.subset_labels(np.array(labels), kept)
    for label, row in zip(labels, found, strict=True):
        assert (kept.classes[row] == label) if row >= 0 else (label not in kept.classes)


@settings(max_examples=20)
@given(st.permutations(range(1000)))
def test_v2_folders_go_by_number(order: list[int]) -> None:
    folders = [str(number) for number in order]
    assert imagenet.imagenet_labels("v2", folders).tolist() == order


def test_v2_folders_sorted_as_text_are_not_sorted_by_class() -> None:
    folders = sorted(str(number) for number in range(1000))
    assert folders[:4] == ["0", "1", "10", "100"]
    assert imagenet.imagenet_labels("v2", folders)[:4].tolist() == [0, 1, 10, 100]


@pytest.mark.parametrize("folder", ["1000", "n01440764", "-1", "1.0", "", "²", "١"])
def test_v2_has_no_other_folders(folder: str) -> None:
    with pytest.raises(InputError, match=r"1 of 2 class folders.*not among the class numbers 0 to 999"):
        imagenet.imagenet_labels("v2", ["5", folder])


def test_wordnet_folders() -> None:
    a = imagenet.subset("a")
    assert imagenet.imagenet_labels("a", a.wnids).tolist() == list(range(200))
    for test in ("clean", "sketch", "real"):
        assert imagenet.imagenet_labels(test, a.wnids).tolist() == list(a.classes)
    shuffled = ["n12267677", "n01498041"]  # a test set need not have every class
    assert imagenet.imagenet_labels("a", shuffled).tolist() == [a.wnids.index(one) for one in shuffled]


def test_folders_that_are_no_class_of_the_test() -> None:
    outside = next(one for one in imagenet.imagenet_classes() if one not in imagenet.subset("a").wnids)
    with pytest.raises(InputError, match=f"1 of 2 class folders, such as '{outside}', are not among the 200"):
        imagenet.imagenet_labels("a", ["n01498041", outside])
    with pytest.raises(InputError, match="2 of 2 class folders, such as 'cat', are not among the 1000"):
        imagenet.imagenet_labels("sketch", ["cat", "dog"])
    with pytest.raises(InputError, match="no class folders"):
        imagenet.imagenet_labels("r", [])
    with pytest.raises(InputError, match="'v2' has no class subset"):
        imagenet.subset("v2")


def test_folders_of_a_users_own_classes() -> None:
    assert imagenet.folder_labels(["dog", "cat"], ["cat", "cow", "dog"]).tolist() == [2, 0]
    with pytest.raises(InputError, match="such as 'wolf'"):
        imagenet.folder_labels(["dog", "wolf"], ["cat", "cow", "dog"])


def test_the_released_real_labels() -> None:
    with resources.as_file(INFO / "imagenet_real_labels.json") as path:
        labels = imagenet.read_real_labels(path)
    counts = np.array([len(one) for one in labels])
    assert len(labels) == 50_000 and (counts == 0).sum() == 3163
    assert counts[counts > 0].mean() == pytest.approx(1.2288, abs=5e-5)
    files = ["val/n01751748/ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00050000.JPEG"]
    assert imagenet.real_labels_of(files, labels) == [labels[0], labels[-1]]


@pytest.mark.parametrize(
    "name",
    ["cat.jpg", "ILSVRC2012_val_00000000.JPEG", "ILSVRC2012_val_00000004.JPEG", "n01440764_10026.JPEG"],
)
def test_a_file_real_does_not_label(name: str) -> None:
    with pytest.raises(InputError, match="the file name must be ILSVRC2012_val_00000001 to 00000003"):
        imagenet.real_labels_of(["ILSVRC2012_val_00000003.JPEG", name], [(1,), (), (2, 3)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[1], [", "is not JSON"),
        ("{}", "holds no list of label lists"),
        ("[]", "holds no list of label lists"),
        ("[[1], 2]", "entry 2 is 2"),
        ("[[1], [1000]]", r"entry 2 is \[1000\]"),
        ("[[true]]", r"entry 1 is \[True\]"),
        ('[["n01440764"]]', "entry 1 is"),
    ],
)
def test_a_bad_file_of_labels(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "real.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        imagenet.read_real_labels(path)


def test_a_file_of_labels_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"real\.json cannot be read \(No such file"):
        imagenet.read_real_labels(tmp_path / "real.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not JSON"):
        imagenet.read_real_labels(tmp_path / "binary.json")
    (tmp_path / "good.json").write_text(json.dumps([[3, 5], []]), encoding="utf-8")
    assert imagenet.read_real_labels(tmp_path / "good.json") == [(3, 5), ()]
