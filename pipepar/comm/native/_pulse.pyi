"""The native pulse, a thread that sends and checks heartbeats; see pulse.hpp."""

from collections.abc import Sequence

def addresses() -> list[str]:
    """Return all IPv4 addresses of this host, except those of the loopback interface."""

def end_with_launcher(signal: int, launcher: int, files: Sequence[str], both: bool) -> None:
    """Have the kernel kill this process, and remove files, when the launcher ends.

    Args:
        signal: the number of a signal that is not used otherwise.
        launcher: the process id of this process's parent, read while that was certainly running.
        files: paths of the files to remove.
        both: whether `end_launcher` may end the launcher.
    """

def end_launcher() -> None:
    """Start a process that ends the launcher, if that is still running after 3 seconds.

    It outlives this process, and also ends the other processes that the launcher has started.
    """

class Limits:
    """Timeouts in seconds; infinity for none."""

    def __init__(self, silence: float, floor: float, ceiling: float) -> None:
        """Set the timeouts.

        Args:
            silence: for a rank that sends no heartbeat.
            floor: the minimum for work on one micro-batch.
            ceiling: the maximum for work on one micro-batch, and the timeout for other work.
        """

    def deadline(self, longest: float) -> float:
        """Return the timeout for work on one micro-batch, in seconds.

        Args:
            longest: the longest such work so far, in seconds; 0 if there was none.
        """

class Pulse:
    """A native thread that sends heartbeats and detects silent and stalled ranks.

    It takes no GIL and calls no MPI.
    """

    def __init__(self, rank: int, hosts: Sequence[str], cookie: int, limits: Limits) -> None:
        """Open a UDP port.

        Args:
            rank: the rank of this process.
            hosts: the host name of each rank.
            cookie: a random number of 64 bits that identifies the job, the same on every rank.
            limits: the timeouts.
        """

    @property
    def port(self) -> int:
        """The UDP port for heartbeats."""

    def meet(self, rank: int, addresses: Sequence[str], port: int, process: int) -> None:
        """Add a rank to exchange heartbeats with, which must add this one. Call before `start`.

        Args:
            rank: the other rank.
            addresses: its IPv4 addresses; each heartbeat is sent to all of them.
            port: its UDP port.
            process: its process id if this process can send it signals, otherwise 0.
        """

    def start(self, signal: int, stacks: int, file: str, files: str) -> None:
        """Start the thread.

        Args:
            signal: a signal whose handler writes all stacks without the GIL.
            stacks: the descriptor of the file that the handler writes to.
            file: the path of the file to append this rank's stacks to.
            files: the paths of the files of all ranks, for the message to the user.
        """

    def enter(self, kind: int, index: int, samples: int = 0, count: int = 0) -> None:
        """Note what this rank begins. Called by one thread only.

        Args:
            kind: a `Kind` of beat.hpp.
            index: the index of the micro-batch.
            samples: the address of the numbers of its samples, int64, read before the call
                returns; 0 for none.
            count: the number of samples.
        """

    def waits(self, begins: bool) -> None:
        """Note that a wait of this rank for another one begins or ends."""

    def waited(self) -> None:
        """Note that this rank has waited for another one until now."""

    def wait(self) -> str:
        """Wait, without the GIL, until this rank has to print the final report and abort the job.

        Returns:
            The text of the report; empty if the pulse was closed.
        """

    def claim(self) -> bool:
        """Return whether the caller has to print the report; False if the pulse has printed it."""

    def close(self) -> None:
        """Announce to the other ranks that no more heartbeats follow, and stop the thread.

        May be called twice.
        """
