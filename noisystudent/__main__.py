"""Runs the command `noisystudent` for `python -m noisystudent`."""

from noisystudent.cli import main

main()
