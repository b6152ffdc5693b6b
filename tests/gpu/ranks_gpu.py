"""Whole pipelines on ranks with real GPUs: the tests of DeviceSuite, and one of memory use.

Started by test_ranks_gpu.py.
"""

import os
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from pipepar import pipeline
from pipepar.comm.gpu.cuda import CudaGpu
from pipepar.comm.world import World
from pipepar.host.device_context import DeviceContext, open_device_context
from pipepar.host.devices import choose_devices, may_share
from pipepar.jobs import run as jobs
from pipepar.pipeline import Pipeline
from tests.helpers.cluster.gpus import NO_GPU
from tests.helpers.device_suite import DeviceSuite
from tests.helpers.factories import slow_last
from tests.helpers.reference import reference

pytestmark = [pytest.mark.mpi, pytest.mark.gpu]

MIXED = [["cuda", "cpu"], ["cpu", "cuda"], ["cuda", "cuda", "cpu"]]
ROWS, WIDTH = 1024, 1024
NBYTES = ROWS * WIDTH * 4


@pytest.fixture(params=[["cuda"], *MIXED], ids=["everywhere", *map("-".join, MIXED)])
def context(
    request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch
) -> DeviceContext:
    """Return the device context of this rank, which pipelines and jobs of the test use."""
    kinds: list[str] = request.param
    by_rank = tuple(kinds[rank % len(kinds)] for rank in range(world.size))
    require_gpus(by_rank)
    if len(kinds) == 1:
        return open_device_context(world, "cuda", print)
    context = mixed_context(world, by_rank)
    for module in (pipeline, jobs):
        monkeypatch.setattr(module, "open_device_context", lambda *_: context)
    return context


class TestGpus(DeviceSuite):
    """The tests of DeviceSuite on real GPUs, and on mixtures of GPUs and hosts."""


def require_gpus(by_rank: Sequence[str]) -> None:
    """Skip the test if there are too few GPUs. All ranks are on one host, so all skip it."""
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    needed, count = by_rank.count("cuda"), torch.cuda.device_count()
    if needed > count and not may_share(os.environ):
        pytest.skip(f"{needed} ranks with a GPU, {count} GPUs, and ranks may not share one")


def mixed_context(world: World, by_rank: tuple[str, ...]) -> DeviceContext:
    """Return a context with a GPU if `by_rank` has "cuda" for this rank; ranks may share GPUs."""
    devices = choose_devices(world, "cpu")
    if by_rank[world.rank] == "cpu":
        return DeviceContext(replace(devices, by_rank=by_rank), None)
    count, before = torch.cuda.device_count(), by_rank[: world.rank].count("cuda")
    total, mine = by_rank.count("cuda"), torch.device("cuda", before % count)
    sharers = len(range(mine.index, total, count))
    name = torch.cuda.get_device_name(mine)
    seen = replace(devices, by_rank=by_rank, mine=mine, name=name, sharers=sharers)
    return DeviceContext(seen, CudaGpu(mine))


def test_memory_does_not_grow_before_a_slow_stage(world: World) -> None:
    """A fast stage holds a few micro-batches only, for any number of micro-batches."""
    if world.size == 1:
        pytest.skip("needs at least two stages")
    require_gpus(["cuda"] * world.size)
    model = slow_last()
    torch.manual_seed(1)
    x = torch.randn(96 * ROWS, WIDTH) if world.rank == 0 else torch.empty(ROWS, WIDTH)
    example = (torch.empty(ROWS, WIDTH),)
    peaks: list[int] = []
    with Pipeline(model, example_args=example, micro_batch=ROWS, depth=1, device="cuda") as pipe:
        for count in (16, 96):
            torch.cuda.reset_peak_memory_stats()
            found = pipe(x[: count * ROWS])
            torch.cuda.synchronize()
            peaks.append(torch.cuda.max_memory_allocated())
        expected = reference(model, pipe)
    assert peaks[1] <= peaks[0] + 8 * NBYTES, [peak / NBYTES for peak in peaks]
    if world.rank == 0:
        for begin in range(0, len(x), ROWS):
            rows = slice(begin, begin + ROWS)
            assert torch.equal(found[rows], expected(x[rows])), begin
