"""Odd recipes and odd values of fields, in a file and as flags."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

from inputs import SETS, Input

_ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
_DEEP = 1000
RECIPES: dict[str, tuple[str | bytes, bool | None]] = {
    "empty": ("", None),
    "comment": ("# nothing\n", None),
    "null": ("null\n", None),
    "list": ("- a\n- b\n", True),
    "text": ("just words\n", True),
    "number": ("42\n", True),
    "binary": (bytes(range(256)) * 8, True),
    "zeros": (bytes(2000), True),
    "UTF-16": ("name: x\nseed: 1\n".encode("utf-16"), None),
    "UTF-16 without mark": ("name: x\n".encode("utf-16-le"), True),
    "latin-1": (b"name: caf\xe9\n", True),
    "mark": (b"\xef\xbb\xbfname: x\n", None),
    "surrogate": (b"name: \xed\xa0\x80\n", True),
    "control": (b"name: \x1b[31m\n", True),
    "escape in text": ('name: "\\x1b[31mred"\n', None),
    "slash in name": ("name: ../../escaped\n", None),
    "tabs": ("data:\n\tresolution: 16\n", True),
    "unclosed": ("data: {resolution: 16\n", True),
    "two documents": ("name: a\n---\nname: b\n", True),
    "same key twice": ("seed: 1\nseed: 2\n", None),
    "itself as list": ("teacher: &a [*a]\n", True),
    "itself as section": ("teacher: &a\n  train: *a\n", True),
    "itself as merge": ("teacher: &a\n  <<: *a\n", True),
    "merge of text": ("teacher:\n  <<: text\n", True),
    "alias bomb": (_ALIASES + "name: *a11\n", True),
    "alias bomb as sets": (_ALIASES + "data: {labeled: *a11}\n", True),
    "alias of nothing": ("teacher: *nothing\n", True),
    "deep lists": ("a: " + "[" * _DEEP + "]" * _DEEP + "\n", True),
    "deep maps": ("".join("  " * n + "a:\n" for n in range(_DEEP)), True),
    "deep flow maps": ("a: " + "{a: " * _DEEP + "1" + "}" * _DEEP + "\n", True),
    "deep teacher": ("teacher: " + "{train: " * 200 + "1" + "}" * 200 + "\n", True),
    "Python object": ("name: !!python/object/apply:os.system ['touch escaped']\n", True),
    "Python name": ("name: !!python/name:os.system\n", True),
    "unknown tag": ("name: !thing x\n", True),
    "binary tag": ("name: !!binary aGVsbG8=\n", None),
    "timestamp": ("name: 2020-01-01\n", None),
    "set": ("teacher: !!set {a, b}\n", True),
    "unknown key": ("techer: {}\n", True),
    "unknown deep key": ("teacher: {train: {stepz: 3}}\n", True),
    "key of number": ("1: 2\n", True),
    "key of null": ("? \n: 2\n", True),
    "key of list": ("? [a, b]\n: 2\n", True),
    "key of true": ("yes: 1\n", True),
    "section as number": ("teacher: 5\n", True),
    "section as list": ("teacher: [1]\n", True),
    "value as section": ("seed: {a: 1}\n", True),
    "seed as text": ("seed: one\n", True),
    "seed as float": ("seed: 1.5\n", True),
    "seed as true": ("seed: true\n", True),
    "seed of 400 digits": (f"seed: {'9' * 400}\n", None),
    "seed of 5000 digits": (f"seed: {'9' * 5000}\n", None),
    "sixty numbers": ("seed: 1:2:3:4:5\n", None),
    "lr of nan": ("teacher: {train: {lr: .nan}}\n", True),
    "lr of inf": ("teacher: {train: {lr: .inf}}\n", True),
    "students of 10^9": ("students: 1000000000\n", None),
    "students as list": ("students: [1, 2]\n", True),
    "students of sections": ("students: [{}, {}]\n", None),
    "base of itself": ("base: odd.yaml\n", None),
    "base as path": ("base: ../../../../etc/passwd\n", True),
    "long line": (f"name: {'x' * 1_000_000}\n", None),
    "many keys": ("".join(f"key{n}: 1\n" for n in range(20_000)), True),
    "model options cache": ("teacher: {model: {options: {cache_dir: /nowhere}}}\n", True),
    "model options overlay": (
        "teacher: {model: {options: {pretrained_cfg_overlay: {file: /etc/passwd}}}}\n",
        True,
    ),
    "model options checkpoint": ("teacher: {model: {options: {checkpoint_path: /etc/passwd}}}\n", True),
}
"""Name to (content, whether it must be refused)."""

FIELDS = {
    "seed": ["-1", "1.5", "1e3", "nan", "x", "9" * 30, "null", "true", "[1]", "0x10", " 1", "１"],
    "name": ["..", "/", "a/b", "\x1b[31m", "x" * 300, "null", "{}", "é"],
    "device": ["gpu", "cuda:99", "cpu:7", "meta", "mps", "null", "\x1b[1m", "cuda:-1", "xpu"],
    "control": ["true", "[none, same_steps]", "2", "maybe", "null", "[]"],
    "data.resolution": ["0", "-8", "7", "1e9", "99999999999", "8.5", "nan", "224px"],
    "data.val_fraction": ["0", "1", "-0.1", "nan", "inf", "1e-320", "0,1", "half"],
    "data.workers": ["-1", "1.5", "none", "x"],
    "data.max_pixels": ["0", "-1", "1e30", "178956971", "nan"],
    "data.resident_gib": ["-1", "nan", "-inf", "x"],
    "data.plane": ["both", "", "RESIDENT", "0"],
    "data.decoder": ["cuda", "", "GPU", "0"],
    "data.max_bad_fraction": ["-1", "1.1", "nan", "2%"],
    "teacher.train.lr": ["inf", "-inf", "nan", "-0.1", "1e400", "x", "1_000"],
    "teacher.train.steps": ["0", "-1", "1.5", "9" * 25, "nan"],
    "teacher.train.pool_epochs": ["0", "-1", "nan", "3"],
    "student.train.label_tail": ["-0.1", "1", "nan"],
    "teacher.train.epochs": ["0", "-1", "nan", "inf", "1e300"],
    "teacher.train.batch_size": ["0", "-1", "1e18", "nan"],
    "teacher.train.ema_decay": ["1", "1.1", "-0.1", "nan"],
    "teacher.train.optimizer": ["adam2", "sgd ", "[sgd]", "null"],
    "teacher.train.clip_norm": ["0", "-1", "nan", "inf"],
    "teacher.train.weight_decay": ["-1", "nan", "inf"],
    "teacher.model.name": [
        "resnet", "resnet8_99", "hf-hub:x/y", "/etc/passwd", "../x", "\x1b[31m", "x" * 5000, "null", "[a]",
        "local-dir:/tmp", "timm/resnet18", "resnet18.does_not_exist", "é",
    ],
    "teacher.model.dropout": ["1", "-0.1", "nan"],
    "teacher.model.options": [
        "x", "[1]", "{cache_dir: /nowhere}", "{pretrained_cfg_overlay: {url: x}}", "{num_classes: 7}",
        "{a: 1}", "{in_chans: 0}", "&a [*a]", "{checkpoint_path: /etc/passwd}", "{global_pool: ''}",
    ],
    "teacher.augment.randaugment": ["rand", "rand-m-1", "rand-m9-n99999999", "rand-m1e9-n2", "x" * 999],
    "teacher.augment.cutout": ["-1", "99999999", "nan"],
    "student.selection.threshold": ["1", "-0.1", "nan", "0.3.3"],
    "student.selection.per_class": ["0", "-1", "9" * 20, "1e9"],
    "student.selection.top_fraction": ["0", "1.1", "nan"],
    "student.pseudo_label.temperature": ["0", "-1", "nan", "inf"],
    "student.pseudo_label.scales": ["[]", "[nan]", "[0]", "[1e9]", "x", "[[1]]"],
    "student.pseudo_label.part_size": ["0", "-1", "1e30"],
    "student.unlabeled_ratio": ["0", "-1", "1e9", "9" * 20, "[7, 1]", "[]", "[1, 2, 3]"],
    "student.init": ["student", "null", "[]"],
    "evaluate.corruptions": ["x", "[x]", "[brightness, brightness]", "[[[]]]"],
    "evaluate.batch_size": ["0", "-1", "nan"],
    "evaluate.resamples": ["0", "-1", "nan", "1e18"],
    "students": ["-1", "1.5", "x", "[1]", "null"],
    "labeled": [
        "", "/dev/null", "/dev/zero", "/proc", "\x1b[31m", "a" * 300, "a/" * 2500, "http://127.0.0.1:9/x.tar",
        "s3://nowhere/x", "file:///nowhere",
    ],
    "unlabeled": ["", "/dev/null", "/dev/zero", "/proc/self", "hf://x", "a" * 300, "a/" * 2500, "{user}"],
}  # fmt: skip
"""Field to values of which each is out of range, of another type, or odd."""


def _plan(*words: str) -> tuple[str, ...]:
    return ("plan", *words, *SETS, "--out", "{out}")


def _write(content: str | bytes, user: Path) -> None:
    (user / "odd.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())


def _sections(value: str, field: str) -> str:
    """Return a recipe that sets one field to a value, as it stands."""
    *parents, last = field.split(".")
    lines = ["  " * depth + f"{parent}:" for depth, parent in enumerate(parents)]
    return "\n".join([*lines, "  " * len(parents) + f"{last}: {value}", ""])


def inputs() -> list[Input]:
    """Return every recipe, every value as a flag, and some values within a recipe."""
    made = []
    for name, (content, refused) in RECIPES.items():
        write: Callable[[Path], object] = partial(_write, content)
        made.append(Input(f"recipe {name}", _plan("{user}/odd.yaml"), write, refused=refused))
    rng = random.Random(0)
    for field, values in FIELDS.items():
        for value in values:
            label = f"{field} = {value!a}"[:60]
            made.append(Input(f"flag {label}", (*_plan("folder"), f"--{field}", value)))
            if "." in field and rng.random() < 0.5:
                write = partial(_write, _sections(value, field))
                made.append(Input(f"in a recipe {label}", _plan("{user}/odd.yaml"), write))
    return made
