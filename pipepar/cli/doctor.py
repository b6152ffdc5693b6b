"""`pipepar doctor`: whether this machine, or this job's hosts, are fit for a run."""

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

# Seconds for the last rank to start; a cold file system can take a minute to load torch.
_PATIENCE: Final = 180.0
_STYLES: Final = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="One JSON document on stdout, for a script, instead of tables."
        ),
    ] = False,
) -> None:
    """Check ranks, hosts and links before a run, and say what to do about each problem.

    Start it exactly as the run: same launcher, same options, same hosts. It takes a few seconds.

    A [yellow]warning[/yellow] works, but slower than it could, as with fewer threads than cores.

    A [red]problem[/red] is to be solved first, as ranks on one core. The exit status is then 1.

    [bold]Four ranks, and the links between them[/bold]

        mpirun -n 4 pipepar doctor

    [bold]In a batch script, before the run[/bold]

        srun pipepar doctor && srun pipepar run ./model passages.txt out.npy

    [bold]Only this machine[/bold]

        pipepar doctor
    """
    from pipepar.cli.terminal import open_console
    from pipepar.doctor.examine import examine
    from pipepar.errors import PipeparError
    from pipepar.supervision.failure import FailTogether, report

    errors = open_console()
    try:
        world = _wait_for_every_rank_to_start()
    except (PipeparError, ImportError, RuntimeError) as error:  # no MPI, or the wrong one
        errors.print(f"error: {error}", markup=False)
        raise typer.Exit(1) from None
    try:
        with FailTogether(world):
            checkup = examine(world)
            if world.is_root:
                _show(checkup, as_json)
            world.all_gather("")  # a launcher may end all ranks when the first ends with status 1
    except (Exception, KeyboardInterrupt) as error:  # a world of one; others have been ended
        errors.print(report(world, error), markup=False)
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    world.close()
    if checkup.status == "problem":
        raise typer.Exit(1)


def _wait_for_every_rank_to_start() -> World:
    """Join the world; a rank that waits too long for the others ends, and says that it is here.

    MPI holds the interpreter while it starts, so no thread of Python's could do that.
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
            f"[{_STYLES[finding.level]}]{finding.level}[/]", finding.check, _sentences(finding)
        )
    return table


def _sentences(finding: Finding) -> str:
    from rich.markup import escape

    lines = [escape(finding.found)]
    if finding.expected:
        lines.append(f"[dim]expected:[/] {escape(finding.expected)}")
    if finding.remedy:
        lines.append(f"[dim]to do:[/] {escape(finding.remedy)}")
    return "\n".join(lines)


def _table(*right: str, left: tuple[str, ...]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", show_header=any(left))
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    for column in left:
        table.add_column(column, overflow="fold")
    return table


def _counted(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'s' * (number != 1)}"
