"""The objects that a run uses on one rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipepar.comm.world import World
from pipepar.host.device_context import DeviceContext
from pipepar.host.threads import claim_threads
from pipepar.progress import NO_DISPLAY, Display
from pipepar.trace import Tracer


@dataclass(frozen=True, slots=True)
class RunContext:
    """The objects that a run uses on one rank; made by `begin`."""

    world: World
    """All ranks."""
    device_context: DeviceContext
    """The device of this rank."""
    threads: int
    """Number of threads of this rank."""
    tracer: Tracer
    """Records the times of this stage."""
    display: Display
    """Displays the notes and the progress of this rank."""
    stop_requested: Callable[[], str]
    """Returns on rank 0 the cause of a requested stop; empty if there is none."""

    @classmethod
    def begin(
        cls,
        world: World,
        device_context: DeviceContext,
        display: Display = NO_DISPLAY,
        stop_requested: Callable[[], str] = lambda: "",
        keeps_spans: bool = False,
    ) -> RunContext:
        """Set torch's number of threads to the share of this rank, and begin to record its times.

        If OMP_NUM_THREADS is set, the number of threads is not changed.

        Args:
            world: all ranks.
            device_context: the device of this rank.
            display: displays the notes and the progress of this rank.
            stop_requested: returns on rank 0 the cause of a requested stop; empty if there is none.
            keeps_spans: whether to store every span, for a timeline.
        """
        threads = claim_threads(world)
        clock = device_context.clock()
        tracer = Tracer(world.rank, keeps_spans, clock, world.heartbeat.set_activity)
        return cls(world, device_context, threads, tracer, display, stop_requested)

    def on_stage(self, stage: int | None) -> RunContext:
        """Return a copy with a new tracer, which records the times of a stage.

        Args:
            stage: the stage of this rank; None if it has none, and the tracer uses its rank number.
        """
        old = self.tracer
        number = self.world.rank if stage is None else stage
        return replace(self, tracer=Tracer(number, old.keeps_spans, old.clock, old.enter))

    def with_new_times(self) -> RunContext:
        """Return a copy with a new tracer and clock, so without recorded times."""
        old = self.tracer
        clock = self.device_context.clock()
        return replace(self, tracer=Tracer(old.stage, old.keeps_spans, clock, old.enter))
