"""Who stalls, who died: the ranks watch over one another, and end together.

The pulse (comm/native/pulse.hpp) finds it out. This is what it may take for granted, how stacks are
written, and the end itself.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from pipepar.comm.liveness.heartbeat import Stacks
from pipepar.comm.world import World
from pipepar.errors import InputError

if TYPE_CHECKING:
    from pipepar.comm.native._pulse import Limits, Pulse

_SECONDS: Final = {
    "PIPEPAR_SILENCE_SECONDS": 10.0,
    "PIPEPAR_STALL_SECONDS": 60.0,
    "PIPEPAR_STALL_CEILING_SECONDS": 1800.0,
}
"""How long a rank may give no sign of life; the least that work on one micro-batch may take before
it counts as stalled (more, where micro-batches have been seen to take long); the most, and the
limit of what is done before, between and after micro-batches."""
_SIGNAL: Final = signal.SIGRTMAX - 2
_JOB_VARIABLES: Final = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")


def keep_watch(world: World, complete: Callable[[str], str]) -> None:
    """Watch over the other ranks, as they do over this one. *Collective.*

    What it finds ends the job, until the world is closed. A world of one is left to its user.

    Args:
        world: all ranks.
        complete: adds to the block that the user is shown what else there is to know.

    Raises:
        InputError: rank 0 was given a limit that is none.
    """
    if world.size == 1 or world.heartbeat.kept:
        return
    limits = agree_on_limits(world)
    stack_file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process is
    faulthandler.register(_SIGNAL, stack_file, all_threads=True)
    listen = partial(_end_on_request, world, stack_file, complete)
    world.heartbeat.begin(world, limits, _stacks(world, stack_file), listen)


def agree_on_limits(world: World) -> Limits:
    """What rank 0 was given in its environment, or the defaults. *Collective.*

    Raises:
        InputError: a limit is no positive number; PeerError on the other ranks.
    """
    from pipepar.comm.native._pulse import Limits

    mine = world.together(lambda: [_seconds(name) for name in _SECONDS] if world.is_root else [])
    return Limits(*map(float, world.broadcast(" ".join(map(str, mine))).split()))


def _seconds(name: str) -> float:
    given = os.environ.get(name) or _SECONDS[name]
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InputError(f"{name} is {given!r}, expected seconds above 0, or inf for no limit")
    return seconds


def _stacks(world: World, stack_file: IO[bytes]) -> Stacks:
    """One file for each host, in the working directory: one for all ranks may not be safe."""
    jobs = (os.environ[name] for name in _JOB_VARIABLES if name in os.environ)
    job = world.broadcast(next(jobs, str(os.getpid())))
    folder = Path.cwd() if os.access(Path.cwd(), os.W_OK) else Path(tempfile.gettempdir())
    several = len(set(world.hosts)) > 1
    own, all_of_them = (f"-{world.host}", "-HOST") if several else ("", "")
    name = f"pipepar-stacks-{job}"
    path, shown = (folder / f"{name}{which}.txt" for which in (own, all_of_them))
    return Stacks(_SIGNAL, stack_file.fileno(), str(path), str(shown))


def _end_on_request(
    world: World, stack_file: IO[bytes], complete: Callable[[str], str], pulse: Pulse
) -> None:
    block = pulse.wait()
    if block:
        block = complete(block)  # where that hangs, on a disk perhaps, the pulse speaks
        if pulse.claim():
            world.abort(block)
    stack_file.close()
