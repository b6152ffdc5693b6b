"""The command `pipepar`: its verbs, and how it ends."""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from typing import Annotated, Any, Final, cast

import typer

from pipepar.cli.doctor import doctor
from pipepar.cli.plan import plan
from pipepar.cli.run import run
from pipepar.comm.group.launcher import is_launched_root

# Of click, which typer may bring or import; this name serves for both.
_UsageError: Final[type[Exception]] = cast("Any", typer.BadParameter).__bases__[0]
# Seconds for rank 0 to start and to tell what is wrong.
_PATIENCE: Final = 10.0

app = typer.Typer(
    help="Pipeline-parallel inference for PyTorch models.\n\n"
    "Start one process for each stage: [bold]mpirun -n 4 pipepar run MODEL INPUT OUTPUT[/bold]",
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(run)
app.command()(plan)
app.command()(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pipepar {version('pipepar')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Entry point of the command `pipepar`; of a job's ranks, the first tells a usage error."""
    if is_launched_root():
        app(prog_name="pipepar")
    try:
        sys.exit(app(prog_name="pipepar", standalone_mode=False))
    except _UsageError as error:
        # A launcher ends all ranks when the first of them ends; that must be the one that tells.
        time.sleep(_PATIENCE)
        sys.exit(getattr(error, "exit_code", 2))
    except typer.Abort:
        sys.exit(1)
