"""The number of micro-batches in flight, and the time at which results are returned."""

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
    """A layer that takes longer than all others, so that micro-batches accumulate before it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch._subclasses.FakeTensor):
            time.sleep(0.01)
        return x.clone()


@pytest.mark.parametrize(("ranks", "depth", "admitted"), [(2, 1, 4), (3, 1, 7), (2, 3, 8)])
def test_at_most_the_admitted_micro_batches_are_in_flight(
    ranks: int, depth: int, admitted: int
) -> None:
    """Each end of a channel holds `depth` micro-batches, and each stage computes one."""

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

    # The channels could hold more: MPI channels, too, may buffer small messages beyond their depth.
    assert in_threads(ranks, work, room=100)[0] == admitted


def test_an_available_result_is_returned_before_the_next_batch_is_read() -> None:
    def work(world: World) -> None:
        channels = cast("ThreadWorld", world).group.channels
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(2))).eval()
        taken = 0

        def result_available(count: int) -> Callable[[], bool]:
            return lambda: taken >= count or channels[1].receiver.ready()

        def batches() -> Iterator[torch.Tensor]:
            for count in range(6):
                # The result of the previous batch may arrive only after this one is requested.
                assert taken >= count - 1
                if count:
                    assert until(result_available(count), 20)
                yield X

        pipe = Pipeline(model, example_args=(X,), micro_batch=2, depth=8)
        for _ in pipe.stream(batches()):
            taken += 1
        pipe.close()

    in_threads(2, work)
