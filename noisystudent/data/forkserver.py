"""Set up the fork server, which imports this module before it makes its first process.

A signal to the whole process group must not end the server: the run would fail instead of being stopped.
Its processes also ignore these signals from their first moment on, until they set their own handlers.

If the parent is killed while a process starts, the error of this process would be a traceback on the
terminal of the user. The parent reports a worker that did not start, in one line.
"""

import signal
import sys
from types import TracebackType

from noisystudent.console import STOP_SIGNALS


def _print_nothing(_kind: type[BaseException], _error: BaseException, _trace: TracebackType | None) -> None:
    """Hook for errors that no code has handled."""


for number in STOP_SIGNALS:
    signal.signal(number, signal.SIG_IGN)
sys.excepthook = _print_nothing
