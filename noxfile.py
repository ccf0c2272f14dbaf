"""The Makefile's targets as sessions of nox. The Makefile makes the environment, so nox makes none."""

import nox

nox.needs_version = ">=2024.4"
nox.options.default_venv_backend = "none"


@nox.session
def check(session: nox.Session) -> None:
    """Format, lint, spelling, types and the rules of imports."""
    session.run("make", "check")


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite without the long checks."""
    session.run("make", "test")
