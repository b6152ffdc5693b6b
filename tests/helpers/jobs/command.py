"""The command line, run in this process."""

import itertools
from collections.abc import Callable

from typer.testing import CliRunner

from pipepar.cli.app import app

MLP = "tests.helpers.factories:mlp"


def after(micro_batches: int) -> Callable[[], str]:
    """Ask a job to stop when so many have begun; three times it is asked before any has."""
    calls = itertools.count(-3)
    return lambda: "SIGTERM" if next(calls) >= micro_batches else ""


def pipepar(*args: object) -> tuple[int, str]:
    """Exit status and words; a run takes 32 samples together, unless told otherwise.

    Results equal those of the unsplit model bit for bit only where micro-batches are the same.
    """
    words = [str(arg) for arg in args]
    if words[0] == "run" and not {"--micro-batch", "--plan"} & set(words):
        words += ["--micro-batch", "32"]
    return command(*words)


def command(*words: str) -> tuple[int, str]:
    """Exit status and words of a command as it stands."""
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())
