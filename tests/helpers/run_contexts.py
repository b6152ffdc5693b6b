"""The RunContext of a run on CPUs."""

from collections.abc import Callable
from dataclasses import replace

import torch

from pipepar.comm.world import World
from pipepar.host.device_context import DeviceContext
from pipepar.host.run_context import RunContext
from pipepar.progress import NO_DISPLAY
from pipepar.trace import Tracer


def run_on_hosts(world: World, note: Callable[[str], None] = lambda text: None) -> RunContext:
    """Return a context in which every rank computes on its CPU. *Collective.*"""
    return RunContext(
        world=world,
        device_context=DeviceContext.on_hosts(world),
        threads=torch.get_num_threads(),
        tracer=Tracer(world.rank),
        display=replace(NO_DISPLAY, note=note),
        stop_requested=lambda: "",
    )
