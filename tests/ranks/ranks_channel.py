"""The MPI channel between real ranks."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from mpi4py import MPI

from pipepar.comm.channels import memory
from pipepar.comm.channels.mpi_endpoint import MpiEndpoint
from pipepar.comm.channels.mpi_receiver import MpiReceiver
from pipepar.comm.channels.mpi_sender import MpiSender
from pipepar.comm.channels.spec import DTYPES
from pipepar.comm.world import World
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch, TensorSpec, Value
from tests.helpers.mpi_channel import assert_same, ends, transfer
from tests.helpers.rank_fixtures import on_ranks

pytestmark = [pytest.mark.mpi(min_size=2), on_ranks(2, 3)]


def check(world: World, values: Sequence[tuple[Value, ...]], depth: int = 3) -> None:
    found = transfer(world, values, depth)
    if world.rank == 1:
        assert [microbatch.index for microbatch in found] == list(range(len(values)))
        for microbatch, sent in zip(found, values, strict=True):
            assert len(microbatch.values) == len(sent)
            for one, other in zip(microbatch.values, sent, strict=True):
                assert_same(one, other)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_dtype(world: World) -> None:
    values: list[tuple[Value, ...]] = []
    for dtype in DTYPES:
        raw, count = torch.arange(96, dtype=torch.uint8), 96 // dtype.itemsize
        tensor = torch.empty(0, dtype=dtype).set_(raw.untyped_storage(), 0, (count,), (1,))
        values.append((tensor, tensor.as_strided((2, count // 4), (count // 2, 2))))
        assert TensorSpec.of(values[-1][1]).has_holes  # type: ignore[arg-type]
    check(world, values)


LAYOUTS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda x: x,
    lambda x: x.t(),
    lambda x: x.reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    lambda x: x[:, ::2],
    lambda x: x[3:, 1:4],
    lambda x: x[:, :1].expand(-1, 7),
    lambda x: x[::2, ::3][:, None, :].expand(-1, 4, -1),
    lambda x: x[0, 0],
    lambda x: x[:0],
    lambda x: x[:, :0],
    lambda x: x.flatten().unfold(0, 5, 2),
    lambda x: x.flatten().as_strided((3, 2, 4), (20, 2, 1)),
    lambda x: torch.complex(x, -x).conj(),
    lambda x: torch.complex(x, -x).conj().imag,
    lambda x: x.unsqueeze(0).expand(3, -1, -1)[:, :, 0],
]


def test_layouts(world: World) -> None:
    """Each three times in a row, so the second and the third are sent without a spec."""
    torch.manual_seed(0)
    tensors = [make(torch.randn(10, 12)) for make in LAYOUTS for _ in range(3)]
    found = transfer(world, [(tensor,) for tensor in tensors])
    assert len(found) == (len(tensors) if world.rank == 1 else 0)
    for microbatch, tensor in zip(found, tensors, strict=False):
        (value,) = microbatch.values
        assert isinstance(value, torch.Tensor)
        assert torch.equal(value, tensor), f"layout {microbatch.index // 3}"
        assert value.shape == tensor.shape
        assert value.stride() == tensor.resolve_conj().resolve_neg().stride()


def test_values_other_than_tensors(world: World) -> None:
    check(
        world,
        [
            (None, True, False, 0, 1, -1, 2**100, -(2**63), 1.5, -0.0, math.nan, math.inf),
            (1 + 2j, "", "grüß\0gott", "\ud800", torch.tensor(3.0)),
            (),
            (torch.empty(0), None),
            (1,),
            (True,),
            (0.0,),
            (-0.0,),
        ],
    )


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_several_tensors_of_varying_shapes(world: World, depth: int) -> None:
    generator = torch.Generator().manual_seed(7)

    def number(high: int) -> int:
        return int(torch.randint(0, high, (1,), generator=generator))

    values: list[tuple[Value, ...]] = []
    for index in range(300):
        several = tuple(
            torch.randn(number(8), number(40 if index % 50 else 4000), generator=generator)
            for _ in range(1 + number(3))
        )
        values.append((*several, index if index % 3 else None))
    check(world, values, depth)


@pytest.mark.full
def test_more_than_two_gibibytes(world: World) -> None:
    if world.size > 2:
        pytest.skip("a third rank would add nothing")
    size = 2**31 + 4097
    pattern = torch.arange(251, dtype=torch.uint8)
    big = pattern.repeat(size // 251 + 1)[:size]
    found = transfer(world, [(big, torch.tensor(1)), (big[:100], torch.tensor(2))], depth=1)
    if world.rank == 1:
        assert_same(found[0].values[0], big)
        assert_same(found[1].values[0], big[:100])


@pytest.mark.parametrize("depth", [1, 3])
def test_tensors_in_several_messages(
    world: World, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message has at most 1 GiB; here the limit is 1000 bytes."""
    monkeypatch.setattr(memory, "PIECE_BYTES", 1000)
    sizes = (250, 1, 251, 0, 1600, 500, 1600, 749)
    check(
        world,
        [
            (torch.arange(float(size)), torch.tensor(size), torch.arange(2.0 * size)[::2])
            for size in sizes
        ],
        depth,
    )


def test_values_that_cannot_be_sent_are_refused(world: World) -> None:
    with ends(world) as (_, sender):
        if sender is not None:
            for value in (torch.eye(3).to_sparse(), torch.empty(2, device="meta"), [1]):
                with pytest.raises(WireError, match="cannot be sent"):
                    sender.send(MicroBatch(0, (value,)))  # type: ignore[arg-type]


def test_tensors_are_received_into_allocated_buffers(world: World) -> None:
    comm, buffers = MPI.COMM_WORLD.Dup(), []

    def allocate(nbytes: int) -> torch.Tensor:
        buffers.append(torch.empty(nbytes, dtype=torch.uint8))
        return buffers[-1]

    endpoint = MpiEndpoint(comm, 1 - world.rank, 0, 2)
    if world.rank == 0:
        sender = MpiSender(endpoint, world._start_engine())
        sender.send(MicroBatch(0, (torch.arange(10), torch.empty(0))))
        sender.end()
        sender.close()
    if world.rank == 1:
        receiver = MpiReceiver(endpoint, world._start_engine(), allocate)
        (found,) = receiver.receive()
        assert_same(found.values[0], torch.arange(10))
        for value in found.values:
            assert isinstance(value, torch.Tensor)
            assert value.data_ptr() in [buffer.data_ptr() for buffer in buffers]
        receiver.close()
    comm.Barrier()
    comm.Free()
