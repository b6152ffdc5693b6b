"""The circumstances of a run, as one rank has them."""

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
    """What does not change from the first measurement of a run to its end; made by `begin`."""

    world: World
    """All ranks."""
    device_context: DeviceContext
    """Where this rank computes."""
    threads: int
    """Threads that it computes with."""
    tracer: Tracer
    """This stage's times."""
    display: Display
    """Where this rank's notes and progress go."""
    asked_to_stop: Callable[[], str]
    """Gives on rank 0 what asked the run to stop; empty if nothing did."""

    @classmethod
    def begin(
        cls,
        world: World,
        device_context: DeviceContext,
        display: Display = NO_DISPLAY,
        asked_to_stop: Callable[[], str] = lambda: "",
        keeps_spans: bool = False,
    ) -> RunContext:
        """Claim this rank's threads, and begin to take its times.

        Args:
            world: all ranks.
            device_context: where this rank computes.
            display: where this rank's notes and progress go.
            asked_to_stop: gives on rank 0 what asked the run to stop; empty if nothing did.
            keeps_spans: whether to keep every span, for a timeline.
        """
        threads = claim_threads(world)
        clock = device_context.clock()
        tracer = Tracer(world.rank, keeps_spans, clock, world.heartbeat.tell)
        return cls(world, device_context, threads, tracer, display, asked_to_stop)

    def on_stage(self, stage: int | None) -> RunContext:
        """The same, with the times of that stage; None for a rank without one, under its number."""
        old = self.tracer
        number = self.world.rank if stage is None else stage
        return replace(self, tracer=Tracer(number, old.keeps_spans, old.clock, old.enter))

    def with_new_times(self) -> RunContext:
        """The same, with no times taken yet."""
        old = self.tracer
        clock = self.device_context.clock()
        return replace(self, tracer=Tracer(old.stage, old.keeps_spans, clock, old.enter))
