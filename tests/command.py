"""The command line, run in this process."""

from typer.testing import CliRunner

from pipepar.cli.app import app

MLP = "tests.factories:mlp"


def pipepar(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())
