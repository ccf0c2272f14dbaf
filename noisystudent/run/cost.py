"""What a stage costs: its time and its peak memory, measured without importing torch."""

from __future__ import annotations

import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_PROCESS = Path("/proc/self")


class Cost:
    """Measures from its creation on.

    The resident memory includes libraries and the parts of memory-mapped files that are in memory, and not
    what decoding processes have. Linux alone has a peak that can be set back; the peak that other programs
    see (`getrusage`, `time -v`) is then that of the last stage.
    """

    def __init__(self) -> None:
        self._begun, self._resettable = time.monotonic(), False
        with suppress(OSError):  # another system, or a container that forbids it: the figure is left out
            (_PROCESS / "clear_refs").write_text("5")  # sets VmHWM to VmRSS, see proc_pid_clear_refs(5)
            self._resettable = True
        if (cuda := _cuda()) is not None:
            cuda.reset_peak_memory_stats()

    def read(self) -> dict[str, Any]:
        """Return `seconds`, and `memory`, the peaks in bytes; None: not known.

        They are `resident` and `gpu`, what torch held there.
        """
        cuda = _cuda()
        peaks = {
            "resident": _high_water() if self._resettable else None,
            "gpu": None if cuda is None else int(cuda.max_memory_reserved()),
        }
        return {"seconds": time.monotonic() - self._begun, "memory": peaks}


def _high_water() -> int | None:
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", (_PROCESS / "status").read_text(), re.MULTILINE)
    return None if peak is None else 1024 * int(peak[1])


def _cuda() -> Any:
    """Return `torch.cuda` if the program uses a GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
