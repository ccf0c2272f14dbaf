"""Runs the command `noisystudent`, also for `python -m noisystudent`."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Sequence


def main(tokens: Sequence[str] | None = None) -> None:
    """Run one command in a process of its own. From its first moment on, a signal ends it in one line.

    Args:
        tokens: arguments. None: those of the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a KeyboardInterrupt in an import would be a traceback
    from noisystudent.console import end_on_signal, end_silently, ignore_signals

    end_on_signal()
    atexit.register(ignore_signals)  # registered first, so it is called last
    from noisystudent.cli import main as call  # takes a third of a second

    code = 0
    try:
        call(tokens)
    except SystemExit as ended:
        code = int(ended.code or 0)
        raise
    finally:
        end_silently(code)


if __name__ == "__main__":
    main()
