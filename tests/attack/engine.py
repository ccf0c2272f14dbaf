"""One attack: a call of the command line in a process of its own, how it is struck, and its laws."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from results import snapshot

SEED = int(os.environ.get("ATTACK_SEED", "0"))
COUNT = int(os.environ.get("ATTACK_COUNT", "20"))
"""Number of inputs and of damaged files; kills, full disks and faults are shares of it."""

CODES = (0, 1, 2, 75)
SECONDS = 60.0  # for one call, also on a machine with other work
LINGER = 10.0  # seconds in which the helpers of an ended process end
MEMORY = 2 << 30  # bytes, resident
LIMITS = {"RLIMIT_DATA": 6 << 30, "RLIMIT_CORE": 0}  # protects the machine; the law is MEMORY


@dataclass(frozen=True)
class Strike:
    """A signal, and its moment: before a file operation, after some seconds, or within a write.

    Attributes:
        number: the signal.
        target: process, group, worker, forkserver or tracker.
        operation: it is sent before this operation, counted from 1, on a file below `Call.below`.
        seconds: it is sent after this time, instead.
        size: the process dies when a file grows beyond this number of bytes, instead.
        times: it is sent before that many operations in succession.
    """

    number: int = signal.SIGKILL
    target: str = "process"
    operation: int | None = None
    seconds: float | None = None
    size: int | None = None
    times: int = 1


@dataclass(frozen=True)
class Call:
    """A call of the command line.

    Attributes:
        words: arguments.
        strike: what happens to it; None for nothing.
        below: start of the paths whose operations are counted.
        limits: limits of the process, by their names in `resource`.
        environment: variables to set.
        fault: a name in `zygote.FAULTS`.
        fresh: start a new Python instead of a fork.
        seconds: after this time the call counts as hanging.
    """

    words: tuple[str, ...]
    strike: Strike | None = None
    below: str = "/"
    limits: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    fault: str = ""
    fresh: bool = False
    seconds: float = SECONDS


@dataclass(frozen=True)
class Outcome:
    """What a call did.

    Attributes:
        code: exit code; negative if a signal ended it.
        out: standard output.
        err: standard error.
        memory: largest resident memory, bytes.
        seconds: duration.
        operations: file operations below `Call.below`.
        strikes: signals that were sent.
        hung: it did not end in time, and was killed.
        left: processes that it left behind.
    """

    code: int
    out: str
    err: str
    memory: int
    seconds: float
    operations: int
    strikes: int
    hung: bool
    left: int


@dataclass(frozen=True)
class Box:
    """The folder of one attack.

    Attributes:
        path: holds all others.
        user: files of the user, and the working directory of the call. It must not change.
        temporary: TMPDIR of the call. It must be empty in the end.
    """

    path: Path

    @property
    def user(self) -> Path:
        return self.path / "user"

    @property
    def temporary(self) -> Path:
        return self.path / "temporary"

    def make(self) -> Box:
        """Make the folders."""
        for folder in (self.user, self.temporary, self.path / "log"):
            folder.mkdir(parents=True, exist_ok=True)
        return self


def members(session: int) -> list[int]:
    """Return the running processes of a session."""
    pids = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                state, *fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == session and state != "Z":
                    pids.append(int(entry.name))
    return pids


class Zygote:
    """The process of `zygote.py`, as the engine uses it; one call at a time."""

    def __init__(self, folder: Path) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HOME": str(folder),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        environment.pop("PYTHONWARNINGS", None)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # `select` knows nothing of what a buffer holds
            env=environment,
        )

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)

    def run(self, call: Call, box: Box) -> Outcome:
        """Run one call to its end, or to the end of its time."""
        assert self._process.stdin is not None
        strike = call.strike
        log = {name: str(box.path / "log" / name) for name in ("stdout", "stderr", "notes")}
        request = asdict(call) | log | {
            "folder": str(box.user),
            "limits": {**LIMITS, **call.limits},
            "environment": {"TMPDIR": str(box.temporary), **call.environment},
            "deadly_size": strike.size if strike else None,
            "strike": asdict(strike) if strike and strike.operation else None,
        }  # fmt: skip
        Path(log["notes"]).write_text("0 0")
        begun = time.monotonic()
        self._process.stdin.write((json.dumps(request) + "\n").encode())
        self._process.stdin.flush()
        pid: int = self._answer(None)["pid"]
        ended, sent, hung = None, 0, False
        if strike is not None and strike.seconds is not None:
            ended = self._answer(strike.seconds)
            sent = int(ended is None and _send(pid, strike))
        ended = ended or self._answer(call.seconds)
        if ended is None:
            hung = True
            os.killpg(pid, signal.SIGKILL)
            ended = self._answer(None)
        seconds = time.monotonic() - begun
        left = _end_session(pid)
        operations, counted = map(int, Path(log["notes"]).read_text().split())
        died = int(strike is not None and strike.size is not None and ended["code"] == -signal.SIGXFSZ)
        out, err = (Path(log[name]).read_bytes().decode(errors="replace") for name in ("stdout", "stderr"))
        return Outcome(
            ended["code"], out, err, ended["memory"], seconds, operations, counted + sent + died, hung, left
        )

    def _answer(self, seconds: float | None) -> Any:
        """Return the next answer, or None if there is none in time."""
        pipe = self._process.stdout
        assert pipe is not None
        if not select.select([pipe], [], [], seconds)[0]:
            return None
        line = pipe.readline()
        assert line, "the zygote has ended"
        return json.loads(line)


def _send(pid: int, strike: Strike) -> bool:
    """Send the signal from outside; returns whether there was a process to receive it."""
    pids = [pid]
    if strike.target == "group":
        pids = [-pid]
    elif strike.target != "process":
        pids = [one for one in members(pid) if one != pid][-1:]
    for one in pids:
        os.kill(one, strike.number)
    return bool(pids)


def _end_session(pid: int) -> int:
    """Wait until the processes of a session have ended, kill the others, and return their number."""
    until = time.monotonic() + LINGER
    while (left := members(pid)) and time.monotonic() < until:
        time.sleep(0.02)
    for one in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    return len(left)


# --- the laws ---


def raw(text: str) -> set[str]:
    """Return the control characters of a text that would reach a terminal."""
    return {repr(one) for one in text if unicodedata.category(one) == "Cc" and one not in "\n\t"}


def lawless(outcome: Outcome, codes: tuple[int, ...] = CODES) -> list[str]:
    """Return which laws of every call are broken, each as one line."""
    err = outcome.err.splitlines()
    # Images that a command leaves out have a line each; they do not end the command.
    ends = [line for line in err if not line.endswith("it has no row in the output")]
    own = [line for line in ends if line.startswith("noisystudent: ")]
    bugs = [line for line in err if "(--debug shows where)" in line]
    broken: list[tuple[object, str]] = [
        (outcome.hung, f"it did not end in {outcome.seconds:.0f} s"),
        (not outcome.hung and outcome.code not in codes, f"exit code {outcome.code}, not one of {codes}"),
        (outcome.memory > MEMORY, f"{outcome.memory / 2**30:.1f} GiB of memory"),
        (outcome.left, f"{outcome.left} processes left behind"),
        ("Traceback (most" in outcome.out + outcome.err, "a traceback"),
        (bugs, f"an error that the program did not expect: {''.join(bugs)[:200]}"),
        (raw(outcome.out + outcome.err), f"control characters {sorted(raw(outcome.out + outcome.err))}"),
        (outcome.code in (1, 2, 75) and len(own) != 1, f"{len(own)} lines 'noisystudent: …', not 1"),
        (
            outcome.code in (1, 2, 75) and len(ends) != len(own),
            f"{len(ends) - len(own)} other lines on stderr",
        ),
    ]
    return [text for holds, text in broken if holds]


@contextlib.contextmanager
def untouched(box: Box, *made: str) -> Iterator[list[str]]:
    """Yield a list that holds, after the block, what it changed among the user's files or left in TMPDIR.

    Args:
        box: the folder of the attack.
        made: names below `box.user` that the call may make.
    """
    before, temporary = snapshot(box.user), snapshot(box.temporary)
    changed: list[str] = []
    yield changed
    after = snapshot(box.user)
    changed += [
        f"user's file {name!r}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and name.split("/")[0] not in made
    ]
    changed += [f"left in TMPDIR: {name}" for name in sorted(snapshot(box.temporary).keys() - temporary)]


def hold(call: Call, outcome: Outcome, broken: list[str], box: Box) -> None:
    """Fail the test if a law is broken, with what was called, what is broken, and what was printed last."""
    if broken:
        ends = [*outcome.out.splitlines()[-2:], *outcome.err.splitlines()[-4:]]
        lines = [
            f"noisystudent {' '.join(call.words)}",
            *broken,
            f"exit code {outcome.code}, and the last lines:",
        ]
        text = "\n".join(line[:400] for line in [*lines, *ends])
        pytest.fail(text.replace(str(box.path), "BOX"), pytrace=False)
