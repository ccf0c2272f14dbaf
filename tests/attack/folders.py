"""Folders for attacks."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder with a short path, deleted in the end whatever is in it: some hold thousands of levels.

    Not a folder of pytest: the path of a socket in TMPDIR has at most 107 bytes, and pytest deletes folders
    much later, and cannot delete so many levels.
    """
    path = Path(tempfile.mkdtemp(prefix="attack-"))
    try:
        yield path
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", str(path)], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["rm", "-rf", "--", str(path)], check=True)
