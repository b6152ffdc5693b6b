"""The watchdog: ranks detect silent and stalled ranks, and then abort the job.

The pulse (comm/native/pulse.hpp) does the detection. This module sets its timeouts, prepares the
files of stacks, and aborts the job.
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
"""Defaults of the timeouts: for a rank that sends no heartbeat; the minimum for work on one
micro-batch, which grows with the longest such work so far; the maximum, which is also the timeout
for work outside of micro-batches."""
_SIGNAL: Final = signal.SIGRTMAX - 2
_JOB_VARIABLES: Final = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")


def keep_watch(world: World, complete: Callable[[str], str]) -> None:
    """Start the watchdog, which runs until the world is closed. *Collective.*

    Does nothing in a world of one, and if the watchdog is running already.

    Args:
        world: all ranks.
        complete: called in a thread with the text of the final report; returns the text to print.

    Raises:
        InputError: an environment variable of the root is not a valid timeout; PeerError on the
            other ranks.
    """
    if world.size == 1 or world.heartbeat.is_running:
        return
    limits = agree_on_limits(world)
    stack_file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the thread of `listen`
    faulthandler.register(_SIGNAL, stack_file, all_threads=True)
    listen = partial(_abort_on_request, world, stack_file, complete)
    world.heartbeat.begin(world, limits, _stacks(world, stack_file), listen)


def agree_on_limits(world: World) -> Limits:
    """Return the timeouts from the environment of the root, or the defaults. *Collective.*

    Raises:
        InputError: a timeout is not a positive number or inf; PeerError on the other ranks.
    """
    from pipepar.comm.native._pulse import Limits

    own = world.together(lambda: [_seconds(name) for name in _SECONDS] if world.is_root else [])
    return Limits(*map(float, world.broadcast(" ".join(map(str, own))).split()))


def _seconds(name: str) -> float:
    """Return a timeout from its variable; the default if that is unset or empty.

    Raises:
        InputError: the value is not a positive number or inf.
    """
    given = os.environ.get(name) or _SECONDS[name]
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InputError(f"{name} is {given!r}, expected seconds above 0, or inf for no limit")
    return seconds


def _stacks(world: World, stack_file: IO[bytes]) -> Stacks:
    """Return where this rank writes its stacks: in a file that the ranks of a host share.

    It is in the working directory, or in the temporary directory if the former is not writable. Its
    name contains the ID of the job, or of the root's process. Hosts do not share a file, since
    appending from several hosts is not safe on every file system. *Collective.*
    """
    jobs = (os.environ[name] for name in _JOB_VARIABLES if name in os.environ)
    job = world.broadcast(next(jobs, str(os.getpid())))
    folder = Path.cwd() if os.access(Path.cwd(), os.W_OK) else Path(tempfile.gettempdir())
    several = len(set(world.hosts)) > 1
    suffixes = (f"-{world.host}", "-HOST") if several else ("", "")
    path, shown = (folder / f"pipepar-stacks-{job}{suffix}.txt" for suffix in suffixes)
    return Stacks(_SIGNAL, stack_file.fileno(), str(path), str(shown))


def _abort_on_request(
    world: World, stack_file: IO[bytes], complete: Callable[[str], str], pulse: Pulse
) -> None:
    """Wait until this rank must abort the job, then print the report and abort. Runs in a thread.

    Does not abort if the pulse was closed, or has printed the report itself.
    """
    block = pulse.wait()
    if block:
        block = complete(block)  # if this hangs, on a disk for example, the pulse prints the block
        if pulse.claim():
            world.abort(block)
    stack_file.close()
