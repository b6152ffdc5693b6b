"""The command `pipepar`, its subcommands, and the exit after a usage error."""

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

# click's UsageError: typer has its own copy of click or imports it, so take it from typer.
_UsageError: Final[type[Exception]] = cast("Any", typer.BadParameter).__bases__[0]
# Seconds that the other ranks wait, so that rank 0 can start and print the usage error.
_USAGE_ERROR_SECONDS: Final = 10.0

app = typer.Typer(
    help="Pipeline-parallel inference for PyTorch models, one stage of the model per rank.\n\n"
    "[bold]With mpirun:[/bold] mpirun -n 4 pipepar run MODEL INPUT OUTPUT\n\n"
    "[bold]With Slurm:[/bold] srun -n 4 pipepar run MODEL INPUT OUTPUT\n\n"
    "Check a machine with 'pipepar doctor', see how a model would be split with 'pipepar plan'.\n\n"
    "'pipepar COMMAND --help' has examples for each command.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(run)
app.command()(plan)
app.command()(doctor)


def _print_version(wanted: bool) -> None:
    """Print the version and exit with code 0, if wanted."""
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
    """Run the command `pipepar`, then exit. In a job, only rank 0 prints a usage error.

    Raises:
        SystemExit: the command has ended; with its exit code.
    """
    if is_launched_root():  # also without a launcher
        app(prog_name="pipepar")
    try:
        sys.exit(app(prog_name="pipepar", standalone_mode=False))
    except _UsageError as error:
        # A launcher ends all ranks as soon as one exits, so rank 0 must have time to print first.
        time.sleep(_USAGE_ERROR_SECONDS)
        sys.exit(getattr(error, "exit_code", 2))
    except typer.Abort:
        sys.exit(1)
