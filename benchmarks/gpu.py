"""Everything that needs a GPU, in one call: the tests, then the benchmarks, to one Markdown file.

    make gpu            # under 8 minutes, with the Python that is there
    make gpu-dry        # the same calls on a CPU with tiny sizes, in under 3 minutes

Each part is a process of its own: one that fails or takes too long is in the file with the end of its output,
and the others still run. A part has what is left of the budget; --parts runs the rest in a second call.
`make gpu-pack` puts wheels and images into .gpu/ for a machine without a network. Where images are missing,
random ones are used, and accuracies mean nothing.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

_ROOT = Path(__file__).resolve().parents[1]
_PACK = _ROOT / ".gpu"
_IMAGES = (_PACK, _ROOT.parent / "shared" / "data")  # where real images may be
_PHOTOS = "imagenet-samples/photos.tar"
_LEAST = 10.0  # seconds; a part is not started with less
_LINES = 60  # of the output of a part that failed

# Versions and device, and what of pyproject.toml is missing or too old.
_PLACE = """
import importlib.metadata as metadata, os, platform, tomllib, torch
from packaging.requirements import Requirement
found = {d.name.lower(): d.version for d in metadata.distributions() if d.name}
names = [name for name in ("torch", "torchvision", "timm", "triton", "numpy") if name in found]
print(", ".join([f"Python {platform.python_version()}", *(f"{name} {found[name]}" for name in names)]) + ".")
if torch.cuda.is_available():
    card = torch.cuda.get_device_properties(0)
    print(f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute capability {card.major}.{card.minor},"
          f" CUDA {torch.version.cuda}, {os.cpu_count()} cores.")
else:
    print(f"CPU, {os.cpu_count()} cores: nothing here was measured on a GPU.")
wanted = map(Requirement, tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"])
lacking = [f"{need} (here: {found.get(need.name.lower(), 'none')})" for need in wanted
           if not need.specifier.contains(found.get(need.name.lower(), "0"), prereleases=True)]
print(f"Missing or of another version: {', '.join(lacking) or 'nothing'}.")
"""


class Part(NamedTuple):
    """A process of the Python that is there.

    Attributes:
        name: heading in the file.
        words: what follows `python`.
        seconds: it is ended after so many.
    """

    name: str
    words: tuple[str, ...]
    seconds: float


class Result(NamedTuple):
    """How a part ended: "ok", or why it failed; and what it printed."""

    part: Part
    state: str
    seconds: float
    output: str


def parts(dry: bool, folders: Sequence[Path], work: Path) -> list[Part]:
    """What is run, the most needed first.

    Args:
        dry: tiny sizes.
        folders: where images are looked for; the last has all of them.
        work: folder for what the parts make.
    """

    def images(name: str) -> str:
        return str(next((folder / name for folder in folders if (folder / name).exists()), name))

    marked = [path for path in (_ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()]
    tests = [str(path.relative_to(_ROOT)) for path in sorted(marked)]
    test = ["-m", "pytest", "-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", *tests]
    cifar = ["--data", images("cifar10"), "--junk", images("tinyimagenet/other-classes.tar.xz")]
    cifar += ["--work", f"{work}/cifar10", "--students", "1", "--evaluate.tests", "[]"]
    label = ["--archive", images("cifar10/train.tar.xz"), "--work", f"{work}/label"]
    snapshot = ["--work", f"{work}/snapshot"]
    decode = Part("decode", ("benchmarks/decode.py", "--repeats", "1", "--photos", images(_PHOTOS)), 40)
    scripts = (_dry if dry else _real)(cifar, label, snapshot)
    named = [
        Part(f"step {words[1]}" if name == "step" else name, (f"benchmarks/{name}.py", *words), seconds)
        for name, seconds, words in scripts
    ]
    return [Part("tests", tuple(test), 120), *named, decode]


_Script = tuple[str, float, list[str]]
"""Name, seconds at most, and arguments."""


def _dry(cifar: list[str], label: list[str], snapshot: list[str]) -> list[_Script]:
    case, once = ["--cases", "resnet8_16@16"], ["--repeats", "1"]
    cifar = ["cifar10-4000", "--labels", "100", *cifar, "--data.val_fraction", "0.4"]
    for learner in ("teacher", "student"):
        cifar += [f"--{learner}.train.steps", "12", f"--{learner}.train.batch_size", "16"]
        cifar += [f"--{learner}.model.name", "resnet8_16", f"--{learner}.augment.randaugment", "null"]
    label = [*case, *once, *label, "--images", "100", "--batch", "16", "--seconds", "0.02"]
    return [
        ("step", 40, [*case, *once, "--budget", "0.2"]),
        ("snapshot", 40, [*case, *once, *snapshot]),
        ("cifar10", 60, cifar),
        ("label", 120, label),
        ("noise", 40, ["--cases", "demo", *once, "--peers", "torchvision"]),
        ("kernels", 40, case),
        ("host", 40, [*case, "--steps", "3"]),
    ]


def _real(cifar: list[str], label: list[str], snapshot: list[str]) -> list[_Script]:
    short = ["--repeats", "3", "--budget", "6", "--forms", "captured"]
    cifar = ["cifar10-4000", "--labels", "4000", *cifar]
    cifar += ["--teacher.train.steps", "600", "--student.train.steps", "600"]
    label = ["--cases", "wrn28_2@32", "resnet50@224", *label, "--seconds", "1.5", "--repeats", "3"]
    return [
        ("step", 80, ["--cases", "wrn28_2@32", *short, "eager"]),
        ("step", 100, ["--cases", "resnet50@224", *short]),
        ("snapshot", 40, snapshot),
        ("cifar10", 150, cifar),
        ("step", 60, ["--cases", "resnet8_16@32", *short]),
        ("step", 120, ["--cases", "efficientnet_b0@224", *short]),
        ("label", 60, [*label, "--images", "5000"]),
        ("noise", 60, ["--cases", "wrn28_2", "resnet50", "--repeats", "3", "--peers", "timm"]),
        ("kernels", 90, []),
        ("host", 30, []),
    ]


def run(part: Part, seconds: float, environment: dict[str, str]) -> Result:
    """Run a part for at most so many seconds; nothing it does is an error here."""
    if seconds < _LEAST:
        return Result(part, "not run: the budget was spent", 0.0, "")
    begun, limit = time.monotonic(), min(seconds, part.seconds)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        process = subprocess.Popen(
            [sys.executable, *part.words], cwd=_ROOT, env=environment, stdin=subprocess.DEVNULL,
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit)
            state = "ok" if code == 0 else f"FAILED with exit code {code}"
        except subprocess.TimeoutExpired:
            state = f"FAILED: ended after {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its workers too
                process.wait()
        file.seek(0)
        output = file.read().replace(str(_ROOT), ".")
    return Result(part, state, time.monotonic() - begun, output)


def report(head: str, results: Iterable[Result]) -> str:
    """The Markdown: a table of the parts, then what each of them printed."""
    results = list(results)
    table = ["| part | seconds | result |", "| --- | ---: | --- |"]
    table += [f"| {result.part.name} | {result.seconds:.0f} | {result.state} |" for result in results]
    text = [head, "\n".join(table)]
    for part, state, _, output in results:
        lines = output.rstrip().splitlines()
        shown = lines if state == "ok" else lines[-_LINES:]
        block = "\n".join(f"    {line.rstrip()}" for line in shown) or "    (no output)"
        words = " ".join(word.replace(str(_ROOT), ".") for word in part.words)
        text.append(f"## {part.name}: {state}\n\n`python {words}`\n\n{block}")
    return "\n\n".join(text) + "\n"


def unpacked(wheels: Sequence[Path], target: Path) -> list[str]:
    """Unpack wheels into one folder, and return it for the Python path."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    return [str(target)] if wheels else []


def random_images(folder: Path) -> Path:
    """Archives with the names and the layout of the real images, and random pixels."""
    import numpy as np
    from PIL import Image

    draw, names = np.random.default_rng(0), random.Random(0)

    def archive(path: Path, files: list[str], side: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:xz" if path.suffix == ".xz" else "w") as tar:
            for name in files:
                buffer = io.BytesIO()
                # Classes differ in brightness, so that a network of a few steps is better than chance.
                level = sum(Path(name).parent.name.encode()) * 47 % 192
                pixels = draw.integers(level, level + 64, (side, side, 3), np.uint8)
                Image.fromarray(pixels).save(buffer, "JPEG")
                member = tarfile.TarInfo(name)
                member.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(member, buffer)

    train = [f"train/{label}/{number}.jpg" for label in "ab" for number in range(120)]
    archive(folder / "cifar10" / "train.tar.xz", train, 32)
    tested = [f"test/{label}/{number}.jpg" for label in "ab" for number in range(20)]
    archive(folder / "cifar10" / "test.tar.xz", tested, 32)
    labeled = [name for name in train if int(Path(name).stem) < 50]
    names.shuffle(labeled)
    (folder / "cifar10" / "labeled-4000.txt").write_text("\n".join(labeled))
    archive(folder / "tinyimagenet" / "other-classes.tar.xz", [f"k/{n}.jpg" for n in range(20)], 64)
    archive(folder / _PHOTOS, [f"photos/n/{n}.JPEG" for n in range(3)], 400)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="on a CPU, with tiny sizes and random images")
    parser.add_argument("--budget", type=float, default=460, help="seconds for all parts")
    parser.add_argument("--parts", nargs="+", help="only these, by the first word of their names")
    parser.add_argument("--out", type=Path, default=_ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    begun, results = time.monotonic(), list[Result]()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pack = [] if arguments.dry else sorted(_PACK.glob("*.whl"))  # they may be for another Python
        path = [str(_ROOT), *unpacked(pack, work / "site")]
        path += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
        environment |= {"PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment |= {"CUDA_VISIBLE_DEVICES": ""} if arguments.dry else {}
        place = run(Part("place", ("-c", _PLACE), 60), arguments.budget, environment)
        real = [] if arguments.dry else [folder for folder in _IMAGES if folder.is_dir()]
        folders = [*real, random_images(work / "images")]
        sets = sorted({path.name for folder in real for path in folder.iterdir() if path.is_dir()})
        images = f"Real images: {', '.join(sets) or 'none, so accuracies mean nothing'}."
        command = "make gpu-dry" if arguments.dry else "make gpu"
        head = f"# {command}, {date.today()}\n\n{place.output.strip()}\n{images}"
        arguments.out.mkdir(parents=True, exist_ok=True)
        file = arguments.out / f"{'gpu-dry' if arguments.dry else 'gpu'}-{date.today()}.md"
        for part in parts(arguments.dry, folders, work):
            if arguments.parts and part.name.split()[0] not in arguments.parts:
                continue
            result = run(part, arguments.budget - (time.monotonic() - begun), environment)
            results.append(result)
            print(f"{part.name}: {result.state}, {result.seconds:.0f} s", flush=True)
            total = f"\nAll in {time.monotonic() - begun:.0f} s."
            file.write_text(
                report(head + total, results), encoding="utf-8"
            )  # after each: the rest may not come
    print(file)
    sys.exit(any(result.state != "ok" for result in results))


if __name__ == "__main__":
    main()
