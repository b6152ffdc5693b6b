"""A pipeline made of programs, channels and the loop, in one process.

    python examples/loop.py

This is what a rank does, without MPI: a stage takes a micro-batch from a channel, runs the program
that its step names, and sends the result. Two threads stand for two ranks.
"""

import threading
from collections.abc import Iterator, Sequence

import torch

from pipepar.comm.channels.inproc import InprocChannel
from pipepar.engine.loop import Outlet, Program, arrivals, outputs_of, run
from pipepar.microbatch import MicroBatch, Step, Value
from pipepar.trace import Tracer


def double(values: tuple[Value, ...], _step: Step) -> Sequence[Value]:
    """Compute stage 0; takes one tensor, returns one."""
    return [2 * values[0]]  # type: ignore[operator]


def increment(values: tuple[Value, ...], _step: Step) -> Sequence[Value]:
    """Compute stage 1."""
    return [values[0] + 1]  # type: ignore[operator]


def source(count: int) -> Iterator[MicroBatch]:
    """Yield micro-batches of one value each."""
    for index in range(count):
        yield MicroBatch(index, (torch.tensor([float(index)]),))


def main() -> None:
    """Stream 10 micro-batches through two stages; at most 2 wait in the channel."""
    channel = InprocChannel(depth=2)
    # At stage 0 the known values are x (position 0, it arrives) and 2 x (position 1, it is made).
    outlet = Outlet(names=("doubled",), positions=(1,), channel=channel.sender)
    first = run([Program((0,), double)], source(10), [outlet], Tracer(stage=0))
    thread = threading.Thread(target=lambda: list(first))
    thread.start()
    tracer = Tracer(stage=1)
    last = run([Program((0,), increment)], arrivals([channel.receiver], tracer), [], tracer)
    results = [microbatch.values[0] for microbatch in outputs_of(last, [1])]
    thread.join()
    assert results == [2 * index + 1 for index in range(10)]
    print(f"{len(results)} micro-batches; stage 1 waited {tracer.totals['receive'].seconds:.4f} s")


if __name__ == "__main__":
    main()
