"""Batches stream through the stages, and the pipeline is never drained between them.

    mpirun -n 2 python examples/stream.py

While stage 1 computes batch k, stage 0 computes batch k + 1. A generator supplies the batches, so
only a few of them are in memory at a time.
"""

from collections.abc import Iterator

import torch
from torch import nn

from pipepar import Pipeline


def batches(count: int) -> Iterator[torch.Tensor]:
    """Yield batches of 16 rows; only rank 0's are computed."""
    for number in range(count):
        yield torch.full((16, 32), float(number))


def main() -> None:
    """Stream 20 batches, then print the time that each stage was busy."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(8))).eval()
    example = torch.zeros(16, 32)
    with Pipeline(model, example_args=(example,), micro_batch=16) as pipe:
        results = list(pipe.stream(batches(20)))  # empty on all ranks except rank 0
        record = pipe.summary()  # collective: every rank calls it
        if pipe.rank == 0:
            with torch.no_grad():
                pairs = zip(results, map(model, batches(20)), strict=True)
                assert all(torch.equal(y, expected) for y, expected in pairs)
            busy = [f"{stage.totals['compute'].seconds * 1e3:.1f} ms" for stage in record.stages]
            print(f"{len(results)} batches in order; each stage computed for {', '.join(busy)}")


if __name__ == "__main__":
    main()
