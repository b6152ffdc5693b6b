"""The MPI receiver refuses invalid messages, and names the rank that sent them."""

from collections.abc import Sequence

import pytest
import torch
from mpi4py import MPI

from pipepar.comm.channels.entries import entries_of
from pipepar.comm.channels.header import HEADER_BYTES, Header, Kind
from pipepar.comm.channels.mpi_endpoint import MpiEndpoint
from pipepar.comm.channels.mpi_receiver import MpiReceiver
from pipepar.comm.channels.spec import pack_spec
from pipepar.comm.world import World
from pipepar.errors import WireError
from pipepar.microbatch import MicroBatch, TensorSpec
from tests.helpers.rank_fixtures import on_ranks

pytestmark = [pytest.mark.mpi(min_size=2), on_ranks(2)]


def refused(world: World, message: str, headers: Sequence[bytes], *specs: bytes) -> None:
    """Send headers and specs from rank 0, and check the error that rank 1 raises."""
    comm = MPI.COMM_WORLD.Dup()
    endpoint = MpiEndpoint(comm, 1 - world.rank, 0, 4)
    if world.rank == 0:
        for header in headers:
            comm.Send(bytearray(header), 1, endpoint.header_tag)
        for spec in specs:
            comm.Send(bytearray(spec), 1, endpoint.spec_tag)
    if world.rank == 1:
        receiver = MpiReceiver(endpoint, world._start_engine())
        with pytest.raises(WireError, match=f"^from rank 0, micro-batch {message}"):
            list(receiver.receive())
        receiver.close()
    comm.Barrier()
    comm.Free()


def header_of(index: int, spec: bytes = b"") -> bytes:
    return Header.announcing(Kind.MICROBATCH, index, 0, spec).pack()


def test_random_bytes_are_an_error(world: World) -> None:
    refused(world, "0: .*expected b'PPAR'", [b"garbage!" * (HEADER_BYTES // 8)])


@pytest.mark.parametrize(("sent", "counted"), [(2, 3), (2, 1), (0, 1)])
def test_a_stream_that_is_not_whole_is_an_error(world: World, sent: int, counted: int) -> None:
    """Otherwise lost micro-batches would go unnoticed."""
    spec = pack_spec(entries_of(MicroBatch(0, ())))  # type: ignore[arg-type]
    headers = [header_of(index, b"" if index else spec) for index in range(sent)]
    end = Header.announcing(Kind.END, counted, 0, b"").pack()
    message = f"{sent}: the stream ends here, but the sender has sent {counted} micro-batches"
    refused(world, message, [*headers, end], *[spec][:sent])


def test_a_damaged_spec_is_an_error(world: World) -> None:
    sent = pack_spec((1,))
    refused(world, "0: a spec's checksum", [header_of(0, sent)], pack_spec((2,)))


def test_tensors_larger_than_the_buffers_are_an_error(world: World) -> None:
    spec = pack_spec((TensorSpec.of(torch.zeros(2)),))
    refused(world, r"0: tensors of \(8,\) bytes do not fit", [header_of(0, spec)], spec)


def test_too_few_entries_are_an_error(world: World) -> None:
    spec = pack_spec((None, None))
    refused(world, "0: a micro-batch of 2 entries arrived", [header_of(0, spec)], spec)
