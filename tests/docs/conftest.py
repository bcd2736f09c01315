"""How the pages' commands run: in this process, so that torch is imported once and not by each of them."""

from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from otus.cli import app


@pytest.fixture
def otus_command() -> Callable[..., str]:
    """Type ``otus`` with these words; what it answers on stdout. A command that fails fails the test."""

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, list(words))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, f"otus {' '.join(words)} ended with {done.exit_code}:\n{done.output}"
        return done.stdout

    return run
