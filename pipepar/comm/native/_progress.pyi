"""The native progress engine; see progress.cpp for how it works."""

from collections.abc import Sequence

class Lane:
    """A queue of tickets, which complete in order; created by `Engine.lane`.

    A ticket is a group of MPI requests that complete together, such as those of one message.
    """

    def push(self, requests: Sequence[int], gate: int = 0) -> None:
        """Add a ticket.

        Args:
            requests: addresses of MPI requests, which the caller keeps alive. In a lane without a
                query they are active. In a lane with a query they are inactive, persistent
                requests; the lane starts them when the gate is open and all earlier tickets are
                started.
            gate: the argument of the lane's query; 0 for a gate that is always open.

        Raises:
            ValueError: a gate for a lane without a query.
        """

    def wait(self, count: int, timeout: float) -> bool:
        """Wait, without the GIL, until `count` tickets since the start are complete.

        Also ends when a ticket has failed, or when fewer than `count` tickets remain since some
        were retracted.

        Returns:
            False after `timeout` seconds, otherwise True.
        """

    def retract(self) -> None:
        """Remove all tickets that are not complete; the caller then owns their requests."""

    def poll(self) -> bool:
        """Start tickets with open gates and test the oldest; return whether any progressed."""

    @property
    def pushed(self) -> int:
        """Number of tickets pushed and not retracted since the start."""

    @property
    def completed(self) -> int:
        """Number of tickets completed since the start."""

    @property
    def error(self) -> int:
        """MPI error code of the first failed request, 0 for none. A failed lane stops."""

    @property
    def gate_error(self) -> int:
        """Result of the query if that was an error, 0 for none. A failed lane stops."""

class Engine:
    """A native thread that tests the requests of all lanes."""

    def __init__(self, mpi_module: str, period: float) -> None:
        """Start the thread.

        Args:
            mpi_module: ``mpi4py.MPI.__file__``.
            period: seconds between two rounds of tests while requests are under way.
        """

    def lane(self, query: int = 0) -> Lane:
        """Create a lane.

        Args:
            query: address of a function ``int query(void *gate)``, such as cudaEventQuery. It
                returns 0 for an open gate and 600 for a closed one; other results are errors. It
                is called by any thread, without the GIL. 0 creates a lane without gates.
        """

    def poll(self) -> None:
        """Test the oldest tickets of all lanes once, in the calling thread."""

    def enter(self, function: int, argument: int) -> int:
        """Call a function in the engine's thread, and wait until it returns.

        Args:
            function: address of an ``int function(void *)``, such as cuCtxSetCurrent.
            argument: its argument.

        Returns:
            Its result.
        """

    def close(self) -> None:
        """Stop the thread. Must be called before MPI_Finalize; may be called twice."""
