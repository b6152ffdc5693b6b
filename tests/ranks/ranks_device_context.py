"""Whole pipelines on stand-ins for GPUs, on CPUs, and on both."""

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

# The devices of the ranks, repeated as a pattern; and the numbers of ranks that `make test` runs.
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
    """The device context of this rank, which every pipeline and job of the test gets."""
    if len(request.param) > max(world.size, 1):
        pytest.skip("with so few ranks a shorter pattern is the same")
    context = context_for(world, request.param)
    for module in (pipeline, jobs):
        monkeypatch.setattr(module, "open_device_context", lambda *_: context)
    monkeypatch.setattr(communicators, "Communicators", CommunicatorsOverMpi)
    return context


class TestStandIns(DeviceSuite):
    """The tests of `DeviceSuite` with each pattern of devices."""

    @on_ranks(1, 2, 3)  # each rank traces the model, which takes long
    def test_texts_of_many_lengths(self, context: DeviceContext) -> None:
        super().test_texts_of_many_lengths(context)


@pytest.mark.parametrize("model", ["picky_first", "picky_last"])
def test_a_job_continues_without_samples_that_fail(
    model: str, context: DeviceContext, world: World, cache: Path
) -> None:
    """A micro-batch with an error has no tensors on the GPU; the next one has them again."""
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
    correct = [sample for sample in range(23) if sample not in (4, 22)]
    with torch.no_grad():
        expected = nn.Sequential(*layers)(torch.from_numpy(x)[correct])
    torch.testing.assert_close(found[correct], expected)
    assert found[[4, 22]].isnan().all()
    assert summary.failed == 2


class Greedy(nn.Module):
    """Runs out of memory, except while it is traced or measured."""

    armed = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if Greedy.armed and not isinstance(x, torch._subclasses.FakeTensor):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return x.clone()


def test_out_of_memory_names_the_stage_and_its_size(
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


def test_an_operation_on_a_gpu_tensor_returns_a_gpu_tensor(world: World) -> None:
    gpu = StandIn()
    product = torch.ones(2, 2) @ gpu.empty(16).view(torch.float32).view(2, 2)
    assert isinstance(product, OnGpu)
    assert gpu.holds(torch.ops.aten.relu.default(product))
