"""The Tab key in bash, with the script that --install-completion writes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tiny import Capture, output

from noisystudent.cli import COMMANDS

BASH = shutil.which("bash")


@pytest.mark.skipif(BASH is None, reason="there is no bash")
def test_bash_completes_commands_flags_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    output(capsys, "--install-completion", "--shell", "bash")

    def completed(*words: str) -> set[str]:
        """What the function of the shell offers for the last word."""
        code = (
            '. "$HOME/.bashrc"; COMP_WORDS=(noisystudent "$@"); COMP_CWORD=$#; _noisystudent;'
            ' printf "%s\\n" "${COMPREPLY[@]}"'
        )
        command = [str(BASH), "--norc", "-c", code, "bash", *words]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())

    assert completed("") == {command.__name__ for command in COMMANDS}
    assert completed("ex") == {"export"}
    assert completed("export", "photos", "--fo") == {"--format"}
    assert completed("export", "photos", "--format", "on") == {"onnx"}
    assert completed("run", "--labeled", "") == set()  # so that bash offers files, as the next line says
    script = tmp_path / ".local" / "share" / "bash-completion" / "completions" / "noisystudent"
    assert script.read_text().rstrip().endswith("complete -o default -F _noisystudent noisystudent")
