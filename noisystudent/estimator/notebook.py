"""Progress in a notebook: lines, and one bar that moves."""

from __future__ import annotations

import html
import sys
import time

from noisystudent.console import Progress

_SECONDS = 0.2  # least time between two movements of the bar


class NotebookProgress(Progress):
    """Prints lines, and shows a bar for the work of the moment under the cell.

    The bar is HTML that the kernel replaces under a display id. Every front end of Jupyter has that, so no
    widgets are needed.
    """

    def __init__(self) -> None:
        # Imported here: IPython exists in a notebook only.
        from IPython.display import HTML, display

        super().__init__()
        self._html, self._task = HTML, ""
        self._started, self._first, self._shown = 0.0, 0, 0.0
        self._handle = display(HTML(""), display_id=True)

    def say(self, line: str) -> None:
        """Print one line."""
        print(line)

    def advance(self, task: str, done: int, total: int, note: str = "") -> None:
        """Move the bar, at most five times a second."""
        now = time.monotonic()
        if task != self._task:
            self._task, self._started, self._first = task, now, done
        elif now - self._shown < _SECONDS and done < total:
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._started, 1e-9)
        left = f", {(total - done) / rate:,.0f} s left" if done < total and rate else ""
        self._handle.update(
            self._html(
                f'<progress value="{done}" max="{total}" style="width: 20em"></progress>'
                f" {html.escape(task)}: {done:,} of {total:,}{left}{html.escape(note and f', {note}')}"
            )
        )


def printed_progress() -> Progress:
    """Return a progress that prints: to the terminal, or in a notebook to the cell."""
    from noisystudent.terminal import Terminal  # rich is slow to import

    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return NotebookProgress() if hasattr(shell, "kernel") else Terminal()
