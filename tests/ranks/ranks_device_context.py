"""Whole pipelines whose ranks compute on GPUs that are not there, on hosts, or some on either."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipepar import pipeline
from pipepar.comm.gpu import communicators
from pipepar.comm.world import World
from pipepar.errors import PlanError, StageError
from pipepar.host.device_context import DeviceContext
from pipepar.jobs import run as jobs
from pipepar.jobs.run import Job, run_job
from pipepar.pipeline import Pipeline
from tests.helpers import factories
from tests.helpers.device_suite import DeviceSuite
from tests.helpers.gpu.standin import CommunicatorsOverMpi, OnGpu, StandIn, context_for
from tests.helpers.rank_fixtures import on_ranks

pytestmark = pytest.mark.mpi

# What ranks sit at, in turn, and on how many ranks every run has that.
KINDS = [
    pytest.param(["cuda"], marks=on_ranks(1, 2), id="cuda"),
    pytest.param(["cuda", "cpu"], marks=on_ranks(2), id="cuda-cpu"),
    pytest.param(["cpu", "cuda"], marks=on_ranks(2, 4), id="cpu-cuda"),
    pytest.param(["cuda", "cuda", "cpu"], marks=on_ranks(3), id="cuda-cuda-cpu"),
]


@pytest.fixture(params=KINDS)
def context(
    request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch
) -> DeviceContext:
    """This rank's, which every pipeline and job of the test takes."""
    if len(request.param) > max(world.size, 1):
        pytest.skip("with so few ranks another pattern is the same")
    context = context_for(world, request.param)
    for module in (pipeline, jobs):
        monkeypatch.setattr(module, "open_device_context", lambda *_: context)
    monkeypatch.setattr(communicators, "Communicators", CommunicatorsOverMpi)
    return context


class TestStandIns(DeviceSuite):
    """On stand-ins for GPUs, on hosts, and on both."""

    @on_ranks(1, 2, 3)  # its model is traced by each rank
    def test_texts_of_many_lengths(self, context: DeviceContext) -> None:
        super().test_texts_of_many_lengths(context)


@pytest.mark.parametrize("model", ["picky_first", "picky_last"])
def test_a_job_goes_on_without_what_fails(
    model: str, context: DeviceContext, world: World, cache: Path
) -> None:
    """What a micro-batch has on the GPUs gives way to a text, and the next one's comes again."""
    x = np.random.default_rng(0).standard_normal((23, 4), dtype=np.float32)
    x[[4, 22]] = 1e6
    folder = cache.parent
    if world.rank == 0:
        np.save(folder / "x.npy", x)
    world.all_gather("")
    names = (f"tests.helpers.factories:{model}", folder / "x.npy", folder / "y.npy")
    summary = run_job(world, Job(*names, micro_batch=3, on_error="skip"))
    world.all_gather("")
    found = torch.from_numpy(np.load(folder / "y.npy"))
    layers = [layer for layer in getattr(factories, model)() if isinstance(layer, nn.Linear)]
    kept = [at for at in range(23) if at not in (4, 22)]
    with torch.no_grad():
        expected = nn.Sequential(*layers)(torch.from_numpy(x)[kept])
    torch.testing.assert_close(found[kept], expected)
    assert found[[4, 22]].isnan().all()
    assert summary.failed == 2


class Greedy(nn.Module):
    """Asks for more memory than there is, but not while it is looked at or measured."""

    armed = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if Greedy.armed and not isinstance(x, torch._subclasses.FakeTensor):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return x.clone()


def test_a_shortage_of_memory_names_the_stage_and_what_it_takes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    if world.size > 1:
        pytest.skip("the rank that fails would end this test on the others")
    context = context_for(world, ["cuda"])
    monkeypatch.setattr(pipeline, "open_device_context", lambda *_: context)
    model = nn.Sequential(nn.Linear(8, 8), Greedy()).eval()
    pipe = Pipeline(model, example_args=(torch.randn(8, 8),), micro_batch=4)
    monkeypatch.setattr(Greedy, "armed", True)
    with pytest.raises(StageError) as caught:
        pipe(torch.randn(8, 8))
    pipe.close()
    assert isinstance(caught.value.__cause__, PlanError)
    remedy = "Start more ranks, take micro-batches of 2"
    for words in ("stage 0 does not fit on a stand-in", "288 B of weights", remedy):
        assert words in str(caught.value)
    assert "Tried to allocate 2.00 GiB" in str(caught.value)


def test_tensors_of_a_gpu_stay_there(world: World) -> None:
    gpu = StandIn()
    product = torch.ones(2, 2) @ gpu.empty(16).view(torch.float32).view(2, 2)
    assert isinstance(product, OnGpu)
    assert gpu.holds(torch.ops.aten.relu.default(product))
