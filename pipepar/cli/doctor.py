"""`pipepar doctor`: checks of this machine, or of the hosts of a job, before a run."""

from __future__ import annotations

import faulthandler
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pipepar.comm.world import World
    from pipepar.doctor.examine import Checkup
    from pipepar.doctor.facts import Finding

# Seconds until the last rank must have started; loading torch may take a minute.
_PATIENCE: Final = 180.0
_STYLES: Final = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON document to stdout instead of tables, for scripts."
        ),
    ] = False,
) -> None:
    """Check ranks, hosts and links before a run, and print a remedy for each problem.

    Start it like the run: same launcher, same options, same hosts. It takes a few seconds.

    A [yellow]warning[/yellow] makes a run slower, such as fewer threads than cores.

    A [red]problem[/red] must be solved first, such as ranks on one core: the exit status is 1.

    [bold]Check four ranks and the links between them[/bold]

        mpirun -n 4 pipepar doctor

    [bold]In a Slurm batch script, start the run only if the check succeeds[/bold]

        srun pipepar doctor && srun pipepar run ./model passages.txt out.npy

    [bold]Check only this machine[/bold]

        pipepar doctor
    """
    from pipepar.cli.terminal import open_console
    from pipepar.doctor.examine import examine
    from pipepar.errors import PipeparError
    from pipepar.supervision.failure import FailTogether, report

    errors = open_console()
    try:
        world = _wait_for_every_rank_to_start()
    except (PipeparError, ImportError, RuntimeError) as error:  # MPI is missing or unsuitable
        errors.print(f"error: {error}", markup=False)
        raise typer.Exit(1) from None
    try:
        with FailTogether(world):
            checkup = examine(world)
            if world.is_root:
                _show(checkup, as_json)
            world.all_gather("")  # else a rank that exits with 1 could end rank 0 while it prints
    except (Exception, KeyboardInterrupt) as error:  # in a world of one; else FailTogether aborts
        errors.print(report(world, error), markup=False)
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    world.close()
    if checkup.status == "problem":
        raise typer.Exit(1)


def _wait_for_every_rank_to_start() -> World:
    """Start the world. Under a launcher, a rank that waits too long prints its stacks and exits.

    MPI holds the GIL while it starts, so a Python thread could not implement the timeout.
    """
    from pipepar.comm.group.launcher import launched
    from pipepar.comm.world import World

    if not launched():
        return World.start()
    faulthandler.dump_traceback_later(_PATIENCE, exit=True)
    try:
        return World.start()
    finally:
        faulthandler.cancel_dump_traceback_later()


def _show(checkup: Checkup, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(checkup.to_json() + "\n")
    else:
        from pipepar.cli.terminal import open_console

        _print_checkup(checkup, open_console(stdout=True))
    sys.stdout.flush()


def _print_checkup(checkup: Checkup, console: Console) -> None:
    console.print(_ranks(checkup))
    console.print()
    if checkup.links:
        console.print(_links(checkup))
        console.print()
    console.print(_findings(checkup))
    console.print()
    levels = [finding.level for finding in checkup.findings]
    problems, warnings = levels.count("problem"), levels.count("warning")
    console.print(
        f"[{_STYLES[checkup.status]}]{_counted(problems, 'problem')}, "
        f"{_counted(warnings, 'warning')}[/]"
    )


def _ranks(checkup: Checkup) -> Table:
    from rich.markup import escape

    from pipepar.format import readable_bytes

    table = _table("rank", "cores", "threads", "memory", left=("host", "processor, devices"))
    for facts in checkup.ranks:
        table.add_row(
            str(facts.rank),
            str(len(facts.cores)),
            str(facts.threads),
            readable_bytes(facts.memory),
            escape(facts.host),
            escape(", ".join([facts.cpu, *facts.devices])),
        )
    return table


def _links(checkup: Checkup) -> Table:
    """Return the table of links, one row for each pair of neighbouring ranks."""
    from pipepar.format import readable_rate, readable_seconds

    table = _table("link", "latency", "bandwidth", "clock", left=("from, to",))
    for link in checkup.links:
        first, second = checkup.ranks[link.first].host, checkup.ranks[link.second].host
        clock = readable_seconds(abs(link.skew))
        table.add_row(
            f"{link.first} - {link.second}",
            readable_seconds(link.latency),
            readable_rate(link.bandwidth),
            f"{'+' if link.skew >= 0 else '-'}{clock}",
            f"within {first}" if first == second else f"{first}, {second}",
        )
    return table


def _findings(checkup: Checkup) -> Table:
    table = _table(left=("", "", ""))
    for finding in checkup.findings:
        table.add_row(
            f"[{_STYLES[finding.level]}]{finding.level}[/]", finding.check, _lines(finding)
        )
    return table


def _lines(finding: Finding) -> str:
    """Return what was found, what was expected and the remedy, one per line, as markup."""
    from rich.markup import escape

    lines = [escape(finding.found)]
    if finding.expected:
        lines.append(f"[dim]expected:[/] {escape(finding.expected)}")
    if finding.remedy:
        lines.append(f"[dim]to do:[/] {escape(finding.remedy)}")
    return "\n".join(lines)


def _table(*right: str, left: tuple[str, ...]) -> Table:
    """Return an empty table: right-aligned columns, then left-aligned ones.

    The headers are hidden if those of `left` are all empty.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", show_header=any(left))
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    for column in left:
        table.add_column(column, overflow="fold")
    return table


def _counted(number: int, noun: str) -> str:
    """Return "no problems", "1 problem", "2 problems" and so on."""
    return f"{number or 'no'} {noun}{'s' * (number != 1)}"
