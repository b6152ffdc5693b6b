"""The spec of a micro-batch, with which a receiver rebuilds its values; sent only if it changes."""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

import torch

from pipepar.comm.channels.header import MAX_SPEC_BYTES
from pipepar.errors import WireError
from pipepar.microbatch import TensorSpec, Value

Entry: TypeAlias = TensorSpec | bool | int | float | complex | str | None
"""One value in a spec: the layout of a tensor; any other value itself."""

Spec: TypeAlias = tuple[Entry, ...]

MAX_TENSOR_BYTES: Final = 1 << 42
MAX_DIMENSIONS: Final = 64

# A dtype's code is its position: append, never reorder.
DTYPES: Final = tuple(
    getattr(torch, name)
    for name in (
        "float32 float64 float16 bfloat16 complex64 complex128 complex32 bool "
        "uint8 int8 int16 int32 int64 uint16 uint32 uint64 "
        "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2 "
        "bits8 bits16 bits1x8 bits2x4 bits4x2 "
        "int1 int2 int3 int4 int5 int6 int7 uint1 uint2 uint3 uint4 uint5 uint6 uint7"
    ).split()
)
_CODES: Final = {dtype: code for code, dtype in enumerate(DTYPES)}


class Tag(enum.IntEnum):
    """The type of an entry in an encoded spec."""

    TENSOR = 1
    NONE = 2
    FALSE = 3
    TRUE = 4
    INT = 5
    FLOAT = 6
    COMPLEX = 7
    STR = 8


def describe(value: Value) -> Entry:
    """Return the spec entry of a value.

    Raises:
        WireError: the value has a type that no channel sends, or is a sparse, quantized or meta
            tensor.
    """
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise WireError(
                f"a {value.layout} {value.dtype} tensor on {value.device} cannot be sent between "
                "stages; only dense, unquantized tensors with values can: call .to_dense() or "
                ".dequantize(), or create it on another device than meta"
            )
        return TensorSpec(value.dtype, tuple(value.shape), value.stride())
    if value is None or isinstance(value, bool | int | float | complex | str):
        return value
    raise WireError(
        f"a value of type {type(value).__name__} cannot be sent between stages; "
        "only tensors, None, bool, int, float, complex and str can"
    )


def matches_spec(spec: Spec, values: Sequence[Value]) -> bool:
    """Return whether `spec` consists of the entries that `describe` returns for `values`.

    Unlike ``==``, it distinguishes True from 1 and 0.0 from -0.0, and NaN equals NaN. It does not
    compare devices. It runs for every micro-batch, so it creates no entries.
    """
    return len(spec) == len(values) and all(map(_matches, spec, values))


def _matches(entry: Entry, value: Value) -> bool:
    if entry is value:
        return True
    if isinstance(entry, TensorSpec):
        return (
            isinstance(value, torch.Tensor)
            and entry.dtype is value.dtype
            and value.layout is torch.strided
            and not value.is_meta
            and entry.shape == value.shape
            and entry.stride == value.stride()
        )
    return type(entry) is type(value) and repr(entry) == repr(value)


def pack_spec(spec: Spec) -> bytes:
    """Encode a spec.

    Raises:
        WireError: the result is longer than MAX_SPEC_BYTES.
    """
    data = b"".join([struct.pack("<I", len(spec)), *map(_pack_entry, spec)])
    if len(data) > MAX_SPEC_BYTES:
        raise WireError(
            f"the values of a micro-batch take {len(data)} bytes without the data of tensors, "
            f"limit {MAX_SPEC_BYTES}; send long strings as uint8 tensors"
        )
    return data


def _pack_entry(entry: Entry) -> bytes:
    if isinstance(entry, TensorSpec):
        dims = (*entry.shape, *entry.stride)
        head = struct.pack("<BBB", Tag.TENSOR, _CODES[entry.dtype], len(entry.shape))
        return head + struct.pack(f"<{len(dims)}Q", *dims)
    if entry is None:
        return struct.pack("<B", Tag.NONE)
    if isinstance(entry, bool):
        return struct.pack("<B", Tag.TRUE if entry else Tag.FALSE)
    if isinstance(entry, int):
        digits = entry.to_bytes(entry.bit_length() // 8 + 1, "little", signed=True)
        return struct.pack("<BI", Tag.INT, len(digits)) + digits
    if isinstance(entry, float):
        return struct.pack("<Bd", Tag.FLOAT, entry)
    if isinstance(entry, complex):
        return struct.pack("<Bdd", Tag.COMPLEX, entry.real, entry.imag)
    text = entry.encode("utf-8", "surrogatepass")
    return struct.pack("<BI", Tag.STR, len(text)) + text


def unpack_spec(data: bytes | bytearray | memoryview) -> Spec:
    """Decode and check a spec.

    Raises:
        WireError: the bytes are not a valid spec, or describe a tensor that is too large.
    """
    reader = _Reader(bytes(data))
    count = reader.number("<I")
    if count > len(data):  # every entry takes at least one byte
        raise WireError(f"a spec of {len(data)} bytes announces {count} values")
    spec = tuple(_unpack_entry(reader) for _ in range(count))
    if reader.remaining:
        raise WireError(f"{reader.remaining} bytes are left over after a spec")
    return spec


class _Reader:
    """Reads fields from the front of a byte string, and checks that it is long enough."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    @property
    def remaining(self) -> int:
        return len(self._data) - self._offset

    def take(self, size: int) -> bytes:
        if size > self.remaining:
            raise WireError(f"a spec ends {size - self.remaining} bytes too early")
        self._offset += size
        return self._data[self._offset - size : self._offset]

    def numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def number(self, layout: str) -> int:
        return self.numbers(layout)[0]

    def real(self) -> float:
        return float(self.number("<d"))


def _unpack_entry(reader: _Reader) -> Entry:
    tag = reader.number("<B")
    if tag == Tag.TENSOR:
        return _unpack_tensor(reader)
    if tag == Tag.NONE:
        return None
    if tag in (Tag.FALSE, Tag.TRUE):
        return tag == Tag.TRUE
    if tag == Tag.INT:
        return int.from_bytes(reader.take(reader.number("<I")), "little", signed=True)
    if tag == Tag.FLOAT:
        return reader.real()
    if tag == Tag.COMPLEX:
        return complex(reader.real(), reader.real())
    if tag == Tag.STR:
        try:
            return reader.take(reader.number("<I")).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise WireError(f"a string is not UTF-8: {error}") from error
    raise WireError(f"a spec has an entry of unknown tag {tag}")


def _unpack_tensor(reader: _Reader) -> TensorSpec:
    code, dimensions = reader.numbers("<BB")
    if code >= len(DTYPES):
        raise WireError(f"a tensor of unknown dtype code {code} is announced")
    if dimensions > MAX_DIMENSIONS:
        raise WireError(f"a tensor of {dimensions} dimensions is announced, limit {MAX_DIMENSIONS}")
    numbers = reader.numbers(f"<{2 * dimensions}Q")
    spec = TensorSpec(DTYPES[code], numbers[:dimensions], numbers[dimensions:])
    # The extent counts, since the receiver allocates a tensor with holes at its full extent. Each
    # size and stride also counts alone, since those of an empty tensor do not affect its extent.
    if max(spec.numel, spec.extent, *numbers, 0) * spec.dtype.itemsize > MAX_TENSOR_BYTES:
        raise WireError(
            f"a tensor of shape {list(spec.shape)} and stride {list(spec.stride)} is announced, "
            f"limit {MAX_TENSOR_BYTES} bytes"
        )
    return spec
