"""Tests of a pipeline on any devices; tests/ranks and tests/gpu run them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from pipepar.comm.world import World
from pipepar.host.device_context import DeviceContext
from pipepar.jobs.run import Job, run_job
from pipepar.pipeline import Pipeline
from tests.helpers.factories import mlp
from tests.helpers.gpu.standin import StandIn
from tests.helpers.models import Convolutions, Encoder, Skips, six_layers
from tests.helpers.reference import device_of, reference


def assert_equals_unsplit(
    model: nn.Module, batches: Sequence[tuple[Any, ...]], micro_batch: int, **options: Any
) -> None:
    with Pipeline(model, example_args=batches[0], micro_batch=micro_batch, **options) as pipe:
        results = list(pipe.stream(batches))
        expected = reference(model, pipe)
    if pipe.rank != 0:
        assert results == []
        return
    for args, found in zip(batches, results, strict=True):
        parts = [
            expected(*(part(arg, begin, micro_batch) for arg in args))
            for begin in range(0, rows(args), micro_batch)
        ]
        leaves = [tensors_of(each) for each in parts]
        whole = [torch.cat(list(each)) for each in zip(*leaves, strict=True)]
        assert all(type(tensor) is torch.Tensor for tensor in tensors_of(found))
        assert all(map(torch.equal, tensors_of(found), whole))


def tensors_of(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def rows(args: tuple[Any, ...]) -> int:
    return len(pytree.tree_leaves(args)[0])


def part(arg: Any, begin: int, size: int) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda leaf: leaf[begin : begin + size], arg)


class DeviceSuite:
    """Tests that use the fixture `context`, the device of this rank."""

    def test_a_chain_of_layers(self, context: DeviceContext) -> None:
        assert_equals_unsplit(six_layers(), [(torch.randn(n, 8),) for n in (40, 7, 1, 13)], 4)

    def test_values_that_skip_stages(self, context: DeviceContext) -> None:
        torch.manual_seed(0)
        assert_equals_unsplit(
            Skips().eval(), [(torch.randn(n, 3, 16, 16),) for n in (9, 4)], 2, depth=1
        )

    def test_texts_of_many_lengths(self, context: DeviceContext) -> None:
        """Several tensors of different dtypes cross, and their sizes grow and shrink."""
        torch.manual_seed(0)
        batches = []
        for length in (9, 17, 3, 17, 30, 2):
            ids = torch.randint(50, (6, length))
            mask = torch.ones(6, length, dtype=torch.int64)
            mask[1, length // 2 + 1 :] = 0
            batches.append(({"ids": ids, "mask": mask},))
        torch.backends.mha.set_fastpath_enabled(False)
        assert_equals_unsplit(Encoder().eval(), batches, 2)

    def test_strides_and_scalars(self, context: DeviceContext) -> None:
        torch.manual_seed(0)
        assert_equals_unsplit(
            Convolutions().eval(), [(torch.randn(n, 3, 8, 8), 0.5) for n in (6, 3)], 2
        )

    def test_bfloat16(self, context: DeviceContext) -> None:
        model = six_layers().to(torch.bfloat16)
        assert_equals_unsplit(model, [(torch.randn(11, 8).to(torch.bfloat16),)], 3)

    def test_each_stage_computes_on_its_device(self, context: DeviceContext, world: World) -> None:
        """Without this check, all tests here could pass without using a GPU."""
        with Pipeline(six_layers(), example_args=(torch.randn(8, 8),), micro_batch=2) as pipe:
            pipe(torch.randn(8, 8))
            summary = pipe.summary()
        assert [stage.device for stage in summary.stages] == list(context.devices.by_rank)
        if isinstance(gpu := context.gpu, StandIn):
            assert gpu.ranges.count(f"stage {world.rank}") == 4
            assert gpu.copied > 0

    def test_measured_plans(self, context: DeviceContext) -> None:
        x, model = torch.randn(40, 8), six_layers()
        with Pipeline(model, example_args=(x,)) as pipe:
            found = pipe(x)
            expected = reference(model, pipe)
        if pipe.rank == 0:
            parts = torch.split(x, pipe.micro_batch)
            assert torch.equal(found, torch.cat(list(map(expected, parts))))

    def test_a_job_from_file_to_file(
        self, context: DeviceContext, world: World, cache: Path
    ) -> None:
        folder = cache.parent
        x = np.random.default_rng(0).standard_normal((23, 4), dtype=np.float32)
        if world.rank == 0:
            np.save(folder / "x.npy", x)
        world.all_gather("")
        job = Job(
            "tests.helpers.factories:mlp",
            folder / "x.npy",
            folder / "y.npy",
            micro_batch=3,
            trace=folder / "trace.json",
        )
        summary = run_job(world, job)
        world.all_gather("")
        found = torch.from_numpy(np.load(folder / "y.npy"))
        devices = [device_of(kind) for kind in context.devices.by_rank]
        model = mlp().to(devices[0])
        with torch.no_grad():
            parts = [model(part.to(devices[0])) for part in torch.split(torch.from_numpy(x), 3)]
        whole = torch.cat(parts).cpu()
        if len(set(devices)) == 1:
            assert torch.equal(found, whole)
        else:  # another kind of device may round differently
            torch.testing.assert_close(found, whole)
        assert all(stage.totals["compute"].count == 8 for stage in summary.stages)
        events = json.loads((folder / "trace.json").read_text())["traceEvents"]
        computed = [event for event in events if event.get("cat") == "compute"]
        assert len(computed) == 8 * world.size
        assert all(event["dur"] > 0 for event in computed)
