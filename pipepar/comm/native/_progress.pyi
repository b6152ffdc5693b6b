"""The native progress engine; see progress.cpp for how it works."""

from collections.abc import Sequence

class Lane:
    """A queue of tickets that complete in the order they were pushed; made by `Engine.lane`."""

    def push(self, requests: Sequence[int], gate: int = 0) -> None:
        """Hand over one ticket: the addresses of MPI requests, which the caller keeps alive.

        Args:
            requests: active ones in a plain lane. In a lane with a query inactive, persistent ones,
                which the lane starts: as soon as the gate is open and every ticket before this one
                is started, complete or not.
            gate: what the lane's query is asked about, until it says that it is open; 0 is open.

        Raises:
            ValueError: a gate for a lane without a query.
        """

    def wait(self, count: int, timeout: float) -> bool:
        """Wait, without the GIL, until `count` tickets are complete, one has failed, or so many
        will never be, since tickets were retracted.

        Returns False after `timeout` seconds.
        """

    def retract(self) -> None:
        """Forget every ticket that is not complete; its requests are the caller's again."""

    def poll(self) -> bool:
        """Start what may start and test the oldest tickets once; whether anything has changed."""

    @property
    def pushed(self) -> int:
        """Tickets pushed and not retracted, since the lane was made."""

    @property
    def completed(self) -> int:
        """Tickets complete, since the lane was made."""

    @property
    def error(self) -> int:
        """MPI error code of the first failed request, 0 for none; a failed lane stands still."""

    @property
    def gate_error(self) -> int:
        """What the query said of a gate that is neither open nor closed, 0 for none; then the lane
        stands still, too."""

class Engine:
    """One native thread that tests the requests of every lane."""

    def __init__(self, mpi_module: str, period: float) -> None:
        """Start the thread.

        Args:
            mpi_module: ``mpi4py.MPI.__file__``.
            period: seconds between two rounds of tests while something is under way.
        """

    def lane(self, query: int = 0) -> Lane:
        """Make a lane that the engine looks after.

        Args:
            query: address of the function that tells whether a gate is open, ``int query(void *)``
                as cudaEventQuery: 0 for open, 600 for closed, anything else is an error. It is
                called from any thread, without the GIL. 0 makes a lane without gates.
        """

    def poll(self) -> None:
        """Test the oldest tickets of every lane once, in the calling thread."""

    def enter(self, function: int, argument: int) -> int:
        """Call a function in the engine's thread, before its next round of tests, and wait for it.

        Args:
            function: address of an ``int function(void *)``, such as cuCtxSetCurrent.
            argument: the argument of the call.

        Returns:
            The result of the call.
        """

    def close(self) -> None:
        """Stop the thread; must come before MPI_Finalize and may be called twice."""
