"""How many micro-batches a pipeline has under way, and when it hands results out."""

import time
from collections.abc import Callable, Iterator
from typing import cast

import pytest
import torch
from torch import nn

from pipepar.comm.world import World
from pipepar.pipeline import Pipeline
from tests.helpers.cluster.waiting import until
from tests.helpers.jobs.threads import ThreadWorld, in_threads

X = torch.zeros(2, 4)
pytestmark = pytest.mark.filterwarnings("ignore:.*they will slow each other")


class Slow(nn.Module):
    """Takes longer than all the others, so that micro-batches pile up before it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch._subclasses.FakeTensor):
            time.sleep(0.01)
        return x.clone()


@pytest.mark.parametrize(("ranks", "depth", "admitted"), [(2, 1, 4), (3, 1, 7), (2, 3, 8)])
def test_no_more_are_under_way_than_are_admitted(ranks: int, depth: int, admitted: int) -> None:
    """Those that both ends of each channel hold, and one that each stage computes."""

    def work(world: World) -> int:
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(ranks)), Slow()).eval()
        fed = taken = most = 0

        def batches() -> Iterator[torch.Tensor]:
            nonlocal fed, most
            for _ in range(5 * admitted):
                fed += 1
                most = max(most, fed - taken)
                yield X

        pipe = Pipeline(model, example_args=(X,), micro_batch=2, depth=depth)
        for _ in pipe.stream(batches()):
            taken += 1
        pipe.close()
        assert taken == fed
        return most

    # Channels with room for more: MPI's, too, may hold small ones beyond their depth.
    assert in_threads(ranks, work, room=100)[0] == admitted


def test_a_result_that_has_come_is_handed_out_before_more_is_fed() -> None:
    def work(world: World) -> None:
        channels = cast("ThreadWorld", world).group.channels
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(2))).eval()
        taken = 0

        def results_there(count: int) -> Callable[[], bool]:
            return lambda: taken >= count or channels[1].receiver.ready()

        def batches() -> Iterator[torch.Tensor]:
            for count in range(6):
                # The result of the one before may come only after this was asked for.
                assert taken >= count - 1
                if count:
                    assert until(results_there(count), 20)
                yield X

        pipe = Pipeline(model, example_args=(X,), micro_batch=2, depth=8)
        for _ in pipe.stream(batches()):
            taken += 1
        pipe.close()

    in_threads(2, work)
