"""The command line, run in this process."""

import itertools
from collections.abc import Callable

from typer.testing import CliRunner

from pipepar.cli.app import app

MLP = "tests.helpers.factories:mlp"


def after(micro_batches: int) -> Callable[[], str]:
    """Return a function that stops a job after a number of micro-batches."""
    calls = itertools.count(-3)  # the job checks three times before the first micro-batch
    return lambda: "SIGTERM" if next(calls) >= micro_batches else ""


def pipepar(*args: object) -> tuple[int, str]:
    """Return the exit status and the output of a command; `run` gets micro-batches of 32.

    Results equal those of the unsplit model bit for bit only for the same micro-batches.
    """
    words = [str(arg) for arg in args]
    if words[0] == "run" and not {"--micro-batch", "--plan"} & set(words):
        words += ["--micro-batch", "32"]
    return command(*words)


def command(*words: str) -> tuple[int, str]:
    """Return the exit status and the output of a command."""
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())
