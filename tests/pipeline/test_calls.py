"""Arguments, results and summaries of a Pipeline."""

import time
from typing import Any

import pytest
import torch
from torch import nn

from pipepar.comm.world import World
from pipepar.errors import InputError, PeerError, WireError
from pipepar.pipeline import Pipeline
from tests.helpers.jobs.threads import Aborted, in_threads

pytestmark = pytest.mark.filterwarnings("ignore:.*they will slow each other")
PAUSE = 0.02


class Paused(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch._subclasses.FakeTensor):
            time.sleep(PAUSE)
        return x.clone()


class Sum(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + 2 * y


def linear(layers: int = 2) -> nn.Module:
    """Return the same model in every thread; torch's default generator is shared by threads."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers))).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
    return model


def test_a_batch_is_a_tuple_a_dict_or_a_single_input() -> None:
    x, y = torch.ones(3, 2), torch.full((3, 2), 10.0)
    pipe = Pipeline(Sum(), example_args=(x, y), micro_batch=2)
    assert torch.equal(pipe(x, y), x + 2 * y)
    assert [found[0, 0].item() for found in pipe.stream([(x, y), (y, x)])] == [21.0, 12.0]
    pipe.close()
    pipe = Pipeline(Sum(), example_kwargs={"x": x, "y": y}, micro_batch=2)
    assert [found[0, 0].item() for found in pipe.stream([{"x": y, "y": x}])] == [12.0]
    pipe.close()
    pipe = Pipeline(linear(), example_args=(torch.zeros(2, 4),), micro_batch=2)
    (found,) = pipe.stream([torch.ones(5, 4)])
    assert found.shape == (5, 4)
    pipe.close()


@pytest.mark.parametrize("rows", [0, 1])
def test_the_micro_batch_defaults_to_8_for_an_example_of_at_most_one_row(rows: int) -> None:
    pipe = Pipeline(linear(), example_args=(torch.zeros(rows, 4),))
    assert pipe.micro_batch == 8
    pipe.close()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_micro_batch_may_be_larger_than_the_example(rows: int, ranks: int) -> None:
    def work(world: World) -> list[int]:
        pipe = Pipeline(linear(), example_args=(torch.zeros(rows, 4),), micro_batch=5)
        assert pipe.micro_batch == 5
        pipe(torch.zeros(11, 4))
        counts = [stage.totals["compute"].count for stage in pipe.summary().stages]
        pipe.close()
        return counts

    assert in_threads(ranks, work) == [[3] * ranks] * ranks


def test_a_summary_covers_all_calls_since_the_last_one() -> None:
    def work(world: World) -> None:
        model = nn.Sequential(nn.Linear(4, 4), Paused(), nn.Linear(4, 4)).eval()
        pipe = Pipeline(model, example_args=(torch.zeros(2, 4),), micro_batch=2, depth=1)
        for calls in (3, 1):
            for _ in range(calls):
                pipe(torch.zeros(4, 4))
            summary = pipe.summary()
            assert summary.samples == 4 * calls
            assert summary.seconds >= calls * 2 * PAUSE
            assert summary.seconds < (calls + 2) * 2 * PAUSE + 1
            assert [stage.rank for stage in summary.stages] == [0, 1]
            counts = [stage.totals["compute"].count for stage in summary.stages]
            assert counts == [2 * calls] * 2
            assert all(stage.seconds <= summary.seconds for stage in summary.stages)
            weights = sum(stage.weight_bytes for stage in summary.stages)
            assert weights == 2 * (16 + 4) * 4
        pipe.close()

    in_threads(2, work)


def test_rank_0_passes_the_data_and_receives_the_results() -> None:
    def work(world: World) -> Any:
        pipe = Pipeline(linear(3), example_args=(torch.zeros(2, 4),), micro_batch=2, depth=1)
        result = pipe(torch.full((5, 4), 1.0 + world.rank))
        pipe.close()
        return result

    first, *others = in_threads(3, work)
    with torch.no_grad():
        expected = torch.cat([linear(3)(part) for part in torch.split(torch.ones(5, 4), 2)])
    assert torch.equal(first, expected)
    assert others == [None, None]


def test_invalid_arguments_are_refused_on_every_rank() -> None:
    def work(world: World) -> None:
        with pytest.raises((InputError, PeerError), match="depth is 0, expected at least 1"):
            Pipeline(linear(), example_args=(torch.zeros(2, 4),), depth=0)

    in_threads(2, work)


def test_an_exception_in_the_constructor_ends_the_job() -> None:
    """Otherwise the other ranks would wait for this one."""

    def work(world: World) -> None:
        layers: Any = linear() if world.rank == 0 else 5
        Pipeline(layers=layers, example_args=(torch.zeros(2, 4),))

    with pytest.raises(Aborted, match=r"(?s)### pipepar: rank 1 of 2 on .*TypeError"):
        in_threads(2, work)
    with pytest.raises(TypeError):
        Pipeline(layers=5, example_args=(torch.zeros(2, 4),))  # type: ignore[arg-type]


def test_a_failed_connection_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only two ranks notice the error; the others would wait."""

    def fail(*given: object, **options: object) -> None:
        raise WireError("NCCL cannot connect rank 1")

    def work(world: World) -> None:
        if world.rank == 1:
            monkeypatch.setattr("pipepar.pipeline.assemble", fail)
        world.all_gather("")
        Pipeline(linear(), example_args=(torch.zeros(2, 4),))

    with pytest.raises(Aborted, match=r"error: NCCL cannot connect rank 1"):
        in_threads(2, work)
