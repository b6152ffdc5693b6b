"""What no sender of ours would send is refused by the MPI channel, which names its sender."""

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
    """What rank 1 says of bytes that rank 0 sends it, which no sender of ours would send."""
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


def announced(index: int, spec: bytes = b"") -> bytes:
    return Header.announcing(Kind.MICROBATCH, index, 0, spec).pack()


def test_garbage_is_an_error_that_names_the_sender(world: World) -> None:
    refused(world, "0: .*expected b'PPAR'", [b"garbage!" * (HEADER_BYTES // 8)])


@pytest.mark.parametrize(("sent", "counted"), [(2, 3), (2, 1), (0, 1)])
def test_a_stream_that_is_not_whole_is_an_error(world: World, sent: int, counted: int) -> None:
    """Whoever takes the end for the end loses the last micro-batches unseen."""
    spec = pack_spec(entries_of(MicroBatch(0, ())))  # type: ignore[arg-type]
    headers = [announced(index, b"" if index else spec) for index in range(sent)]
    end = Header.announcing(Kind.END, counted, 0, b"").pack()
    message = f"{sent}: the stream ends here, but {counted} micro-batches were sent"
    refused(world, message, [*headers, end], *[spec][:sent])


def test_a_spec_that_was_damaged_is_an_error(world: World) -> None:
    sent = pack_spec((1,))
    refused(world, "0: a spec's checksum", [announced(0, sent)], pack_spec((2,)))


def test_tensors_that_were_not_given_room_are_an_error(world: World) -> None:
    spec = pack_spec((TensorSpec.of(torch.zeros(2)),))
    refused(world, r"0: tensors of \(8,\) bytes do not fit", [announced(0, spec)], spec)


def test_entries_that_are_no_micro_batch_are_an_error(world: World) -> None:
    spec = pack_spec((None, None))
    refused(world, "0: a micro-batch of 2 entries arrived", [announced(0, spec)], spec)
