"""Packing of tensors in one buffer, and unpacking with their strides."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipepar.comm.channels.memory import flat, packed, tensor_from_buffer, tensor_layouts, whole
from pipepar.comm.channels.spec import describe
from pipepar.comm.gpu.packing import Packing
from pipepar.microbatch import TensorSpec, Value
from tests.helpers.simulated.gpu import SimulatedGpu
from tests.helpers.simulated.scheduler import Scheduler

LAYOUTS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda x: x,
    lambda x: x.t(),
    lambda x: x[3:],
    lambda x: x[:, ::2],
    lambda x: x[3:, 1:4],
    lambda x: x[:, :1].expand(-1, 7),
    lambda x: x[::2, ::3][:, None, :].expand(-1, 4, -1),
    lambda x: x[0, 0],
    lambda x: x[3, 5],
    lambda x: x[:0],
    lambda x: x[10:, 3:],
    lambda x: x.flatten().unfold(0, 5, 2),
    lambda x: torch.complex(x, -x).conj().resolve_conj(),
    lambda x: torch.complex(x, -x).conj().imag.resolve_neg(),
    lambda x: x.bfloat16(),
    lambda x: x.half()[:, ::3],
    lambda x: x > 0,
    lambda x: (x > 0)[:, 1::2],
]


def tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [make(torch.randn(10, 12, generator=generator)) for make in LAYOUTS]


def assert_laid_out(found: Value, sent: torch.Tensor) -> None:
    assert isinstance(found, torch.Tensor)
    assert TensorSpec.of(found) == TensorSpec.of(sent)
    assert torch.equal(found, sent)


def test_tensors_are_laid_out_from_one_buffer() -> None:
    sent, copied = tensors(), list[torch.Tensor]()
    layouts = tensor_layouts(tuple(map(TensorSpec.of, sent)))
    begins, nbytes = packed(layouts)
    memory, reach = torch.empty(nbytes, dtype=torch.uint8), 0
    for tensor_layout, begin, tensor in zip(layouts, begins, sent, strict=True):
        raw = flat(whole(tensor_layout, tensor).contiguous() if tensor_layout.has_holes else tensor)
        assert begin % 512 == 0  # the alignment of torch's allocator
        assert reach <= begin < reach + 512
        assert len(raw) == tensor_layout.nbytes
        memory[begin : begin + tensor_layout.nbytes] = raw
        reach = begin + tensor_layout.nbytes
    assert reach == nbytes

    def copy(target: torch.Tensor, source: torch.Tensor) -> None:
        copied.append(target.copy_(source))

    for tensor_layout, begin, tensor in zip(layouts, begins, sent, strict=True):
        found = tensor_from_buffer(tensor_layout, memory[begin:], copy)
        assert_laid_out(found, tensor)
        if not tensor_layout.has_holes:
            assert found.untyped_storage().data_ptr() == memory.data_ptr()
    assert len(copied) == sum(tensor_layout.has_holes for tensor_layout in layouts)


def test_values_are_packed_and_unpacked_at_their_positions() -> None:
    """Values other than tensors take no space in the buffer."""
    scheduler = Scheduler(eagerness=0)
    gpu = SimulatedGpu(scheduler, "a")
    sent: list[Value] = [None, *tensors(), "text", torch.arange(7), 1.5]
    packing = Packing.of(tuple(map(describe, sent)))
    memory = gpu.empty(packing.nbytes)
    values: list[Value] = []
    for value in sent:
        if isinstance(value, torch.Tensor):
            values.append(resident(gpu, value))
        else:
            values.append(value)
    for begin, part in packing.parts(tuple(values)):
        place = memory[begin : begin + part.nbytes].view(part.dtype).view(part.shape)
        gpu.copy(place, part, gpu.compute)
    found: list[Value] = list(sent)
    for position, tensor in packing.unpacked(memory, gpu):
        found[position] = tensor
    # Copies run on the compute stream, so the stage needs no event for them.
    assert all(not stream.waiting for stream in scheduler.streams if stream is not gpu.compute)
    scheduler.drain()
    scheduler.assert_ordered()
    for one, other in zip(found, sent, strict=True):
        if isinstance(other, torch.Tensor):
            assert isinstance(one, torch.Tensor)
            assert gpu.holds(one)
            assert one.stride() == other.stride()
            assert one.tolist() == other.tolist()
        else:
            assert one == other


def resident(gpu: SimulatedGpu, value: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor on the GPU, with the same strides and offset."""
    memory = gpu.empty(value.untyped_storage().nbytes()).view(value.dtype)
    gpu.launch(
        gpu.compute,
        lambda x: x.copy_(value.new_empty(0).set_(value.untyped_storage())),
        writes=[memory],
    )
    return memory.as_strided(value.shape, value.stride(), value.storage_offset())
