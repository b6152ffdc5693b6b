"""The command `pipepar`: its verbs, and how it ends."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from pipepar.cli.plan import plan
from pipepar.cli.run import run

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
    """Entry point of the command `pipepar`."""
    app(prog_name="pipepar")
