"""The native pulse; see pulse.hpp for how it works."""

from collections.abc import Sequence

def addresses() -> list[str]:
    """Every IPv4 address of this host, but the loopback's."""

def end_with_launcher(signal: int, launcher: int, files: Sequence[str], both: bool) -> None:
    """Have this process removed when the launcher ends, and some files with it.

    Args:
        signal: number of one that nobody else uses.
        launcher: this process's parent, as it was when it was surely alive.
        files: what to remove.
        both: whether `end_launcher` may end it.
    """

def end_launcher() -> None:
    """Have another process end the launcher, if that does not end by itself within 3 seconds.

    It outlives this one. What the launcher has started besides, ends with it.
    """

class Limits:
    """How long what may take, in seconds; infinity for ever."""

    def __init__(self, silence: float, floor: float, ceiling: float) -> None:
        """Set them.

        Args:
            silence: without a sign of life.
            floor: for work on one micro-batch, the least.
            ceiling: the most; and what is done outside of micro-batches.
        """

    def deadline(self, longest: float) -> float:
        """For work on one micro-batch, where the longest so far took that many seconds; 0: none."""

class Pulse:
    """One native thread that beats, listens and judges; it takes no GIL and calls no MPI."""

    def __init__(self, rank: int, hosts: Sequence[str], cookie: int, limits: Limits) -> None:
        """Open a port.

        Args:
            rank: this process.
            hosts: each rank's, by rank.
            cookie: the job's own number, the same on every rank, of 64 bits.
            limits: how long what may take.
        """

    @property
    def port(self) -> int:
        """Where beats are heard, UDP."""

    def meet(self, rank: int, addresses: Sequence[str], port: int, process: int) -> None:
        """Exchange beats with a rank, which must do the same; before `start`.

        Args:
            rank: which.
            addresses: where it may be reached, IPv4; a beat goes to each.
            port: its own.
            process: its id, where it can be signalled from here; else 0.
        """

    def start(self, signal: int, stacks: int, file: str, files: str) -> None:
        """Begin to beat.

        Args:
            signal: one whose handler writes all stacks and takes no GIL.
            stacks: descriptor of the file that it writes them to.
            file: where this rank's stacks are added in the end.
            files: what the user is told of where all are.
        """

    def enter(self, kind: int, index: int, samples: int = 0, count: int = 0) -> None:
        """This rank begins something; called by one thread.

        Args:
            kind: one of beat.hpp's.
            index: the micro-batch.
            samples: address of the numbers of its samples, int64, read at once; 0 for none.
            count: how many.
        """

    def waits(self, begins: bool) -> None:
        """From here on, or no longer, this rank waits for another one."""

    def waited(self) -> None:
        """Up to now this rank waited for another one."""

    def wait(self) -> str:
        """Wait until this rank is to tell the user and end the job; the block to tell.

        Without the GIL. Empty where the pulse was closed.
        """

    def claim(self) -> bool:
        """Whether the caller is to tell it; False where the pulse, tired of waiting, has."""

    def close(self) -> None:
        """Tell the others that no more beats will follow, and stop; may be called twice."""
