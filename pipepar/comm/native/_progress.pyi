"""The native progress engine; see progress.cpp for how it works."""

from collections.abc import Sequence

class Lane:
    """A queue of tickets that complete in the order they were pushed; made by `Engine.lane`."""

    def push(self, requests: Sequence[int]) -> None:
        """Hand over one ticket: the addresses of MPI requests, which the caller keeps alive."""

    def wait(self, count: int, timeout: float) -> bool:
        """Wait, without the GIL, until `count` tickets are complete or one has failed.

        Returns False after `timeout` seconds.
        """

    def retract(self) -> None:
        """Forget every ticket that is not complete; its requests are the caller's again."""

    def poll(self) -> bool:
        """Test the oldest tickets once; whether anything has completed."""

    @property
    def pushed(self) -> int:
        """Tickets pushed and not retracted, since the lane was made."""

    @property
    def completed(self) -> int:
        """Tickets complete, since the lane was made."""

    @property
    def error(self) -> int:
        """MPI error code of the first failed request, 0 for none; a failed lane stands still."""

class Engine:
    """One native thread that tests the requests of every lane."""

    def __init__(self, mpi_module: str, period: float) -> None:
        """Start the thread.

        Args:
            mpi_module: ``mpi4py.MPI.__file__``.
            period: seconds between two rounds of tests while something is under way.
        """

    def lane(self) -> Lane:
        """Make a lane that the engine looks after."""

    def poll(self) -> None:
        """Test the oldest tickets of every lane once, in the calling thread."""

    def close(self) -> None:
        """Stop the thread; must come before MPI_Finalize and may be called twice."""
