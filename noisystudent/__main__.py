"""`python -m noisystudent` is the command `noisystudent`."""

from noisystudent.cli import main

main()
