"""Headers and specs: exact round trips, and invalid bytes, which raise a WireError."""

import math
import struct
import tracemalloc
import zlib

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pipepar.comm.channels.header import HEADER_BYTES, MAGIC, MAX_SPEC_BYTES, VERSION, Header, Kind
from pipepar.comm.channels.spec import (
    DTYPES,
    MAX_DIMENSIONS,
    MAX_TENSOR_BYTES,
    Spec,
    Tag,
    describe,
    matches_spec,
    pack_spec,
    unpack_spec,
)
from pipepar.errors import WireError
from pipepar.microbatch import TensorSpec

sizes = st.integers(0, 2**20)
tensors = st.integers(0, 4).flatmap(
    lambda n: st.builds(
        TensorSpec,
        st.sampled_from(DTYPES),
        st.tuples(*[st.integers(0, 64)] * n),
        st.tuples(*[st.integers(0, 64)] * n),
    )
)
entries = st.one_of(
    tensors,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters(exclude_categories=())),
)
specs = st.lists(entries, max_size=8).map(tuple)


@given(st.sampled_from(Kind), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.binary())
def test_a_header_is_restored_exactly(kind: Kind, index: int, generation: int, spec: bytes) -> None:
    header = Header.announcing(kind, index, generation, b"" if kind is Kind.END else spec)
    data = header.pack()
    assert len(data) == HEADER_BYTES
    assert Header.unpack(data) == header


@given(specs)
def test_a_spec_is_restored_exactly(spec: Spec) -> None:
    assert repr(unpack_spec(pack_spec(spec))) == repr(spec)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_as_a_header(data: bytes) -> None:
    with pytest.raises(WireError):
        Header.unpack(data)


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_random_bytes_after_a_valid_start_are_refused(data: bytes) -> None:
    begin = struct.pack("<4sH", MAGIC, VERSION)
    with pytest.raises(WireError):
        Header.unpack(begin + data[len(begin) :])


@given(
    st.integers(0, 255) | st.sampled_from(Kind),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
)
@example(Kind.END, 0, 1, 5)
@example(Kind.MICROBATCH, 0, MAX_SPEC_BYTES, 5)
@example(Kind.MICROBATCH, 0, MAX_SPEC_BYTES + 1, 5)
@example(0, 0, 0, 5)
@example(3, 0, 0, 5)
def test_fields_are_checked_even_if_the_checksum_is_right(
    kind: int, generation: int, spec_bytes: int, index: int
) -> None:
    fields = struct.pack("<4sHBxIIQ", MAGIC, VERSION, kind, generation, spec_bytes, index)
    data = fields + struct.pack("<II", zlib.crc32(fields), 0)
    allowed = (kind == Kind.MICROBATCH and spec_bytes <= MAX_SPEC_BYTES) or (
        kind == Kind.END and spec_bytes == 0
    )
    if allowed:
        assert Header.unpack(data).index == index
    else:
        with pytest.raises(WireError):
            Header.unpack(data)


@given(st.binary(max_size=300))
def test_random_bytes_as_a_spec_allocate_little_memory(data: bytes) -> None:
    """They are refused, or decoded to a spec that can be encoded again."""
    tracemalloc.start()
    try:
        spec = unpack_spec(data)
    except WireError:
        spec = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20
    if spec is not None:
        again = unpack_spec(pack_spec(spec))
        assert len(again) == len(spec)


@given(specs, st.data())
def test_a_damaged_spec_is_refused(spec: Spec, data: st.DataObject) -> None:
    packed = bytearray(pack_spec(spec))
    header = Header.announcing(Kind.MICROBATCH, 0, 0, bytes(packed))
    where = data.draw(st.integers(0, len(packed) - 1))
    packed[where] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError, match="checksum"):
        header.checked(packed)


@pytest.mark.parametrize("kind", Kind)
def test_a_header_with_a_flipped_bit_is_refused(kind: Kind) -> None:
    """In any field: nothing but the checksum can detect a wrong index."""
    spec = b"" if kind is Kind.END else b"a spec"
    sent = Header.announcing(kind, 5, 3, spec).pack()
    for bit in range(8 * len(sent)):
        data = bytearray(sent)
        data[bit // 8] ^= 1 << bit % 8
        if bit < 8 * (len(sent) - 4):
            with pytest.raises(WireError):
                Header.unpack(data)
        else:  # the last four bytes are the checksum of the spec, which is compared with the spec
            with pytest.raises(WireError, match="a spec's checksum"):
                Header.unpack(data).checked(spec)


def accepts(dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Return whether a receiver accepts a tensor with this layout."""
    spec = (TensorSpec(dtype, shape, stride),)
    try:
        found = unpack_spec(pack_spec(spec))
    except WireError:
        return False
    assert found == spec
    return True


MOST = MAX_TENSOR_BYTES // 8


@pytest.mark.parametrize(
    ("shape", "stride"),
    [
        ((2**40, 8), (8, 1)),
        ((2, 1), (2**60, 1)),
        ((0, 2**63), (1, 1)),
        ((1, 2), (2**63, 1)),  # the stride of a dimension of size 1
        ((2**20, 2**20), (0, 0)),  # all elements at one address
        ((2**11 + 1,), (2**30,)),  # few elements, far apart
        ((MOST + 1,), (1,)),
    ],
)
def test_a_huge_tensor_is_refused_before_memory_is_taken_for_it(
    shape: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    assert not accepts(torch.float64, shape, stride)


def test_the_size_limit_of_a_tensor() -> None:
    assert accepts(torch.float64, (MOST,), (1,))
    assert accepts(torch.uint8, (8 * MOST,), (1,))
    assert not accepts(torch.float32, (2 * MOST + 1,), (1,))


def test_the_limit_of_dimensions() -> None:
    assert accepts(torch.float32, (1,) * MAX_DIMENSIONS, (1,) * MAX_DIMENSIONS)
    more = (1,) * (MAX_DIMENSIONS + 1)
    assert not accepts(torch.float32, more, more)


def test_a_header_of_another_version_has_a_remedy() -> None:
    data = bytearray(Header.announcing(Kind.END, 0, 0, b"").pack())
    data[4] += 1
    with pytest.raises(WireError, match="same installation"):
        Header.unpack(data)


def test_a_spec_that_is_too_long_is_refused() -> None:
    room = MAX_SPEC_BYTES - len(pack_spec(("",)))
    longest = pack_spec(("x" * room,))
    Header.unpack(Header.announcing(Kind.MICROBATCH, 0, 0, longest).pack())
    with pytest.raises(WireError, match="uint8 tensors"):
        pack_spec(("x" * (room + 1),))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack("<I", 2**32 - 1) + b"\2" * 8, "of 12 bytes announces 4294967295 values"),
        (pack_spec((None,)) + b"\2", "1 bytes are left over after a spec"),
        (pack_spec(("four",))[:-1], "ends 1 bytes too early"),
        (struct.pack("<IB", 1, 0), "unknown tag 0"),
        (struct.pack("<IBI", 1, Tag.STR, 1) + b"\xff", "not UTF-8"),
        (struct.pack("<IBBB", 1, Tag.TENSOR, len(DTYPES), 0), "unknown dtype code"),
    ],
)
def test_an_invalid_spec_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        unpack_spec(data)


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (0, False), (1, 1.0), (0.0, -0.0), (1.0, 1 + 0j), ("", None)]
)
def test_values_that_compare_equal_in_python_are_distinguished(one: object, other: object) -> None:
    assert not matches_spec((one,), (other,))  # type: ignore[arg-type]


def test_a_spec_matches_only_its_own_values() -> None:
    tensor = torch.zeros(4, 6)
    spec = (describe(tensor), 1, None, "text")
    assert matches_spec(spec, (torch.ones(4, 6), 1, None, "text"))
    others = [
        *(torch.zeros(6, 4), torch.zeros(6, 4).t(), torch.zeros(4, 6).double(), None, 1),
        *(torch.zeros(4, 6, device="meta"), torch.zeros(4, 6).to_sparse()),
    ]
    for other in others:
        assert not matches_spec(spec, (other, 1, None, "text"))
    assert not matches_spec(spec, (tensor, 1, None))
    assert not matches_spec((None,), (tensor,))


def test_nan_equals_nan_and_is_restored() -> None:
    assert matches_spec((1, math.nan), (1, float("nan")))
    (found,) = unpack_spec(pack_spec((math.nan,)))
    assert isinstance(found, float)
    assert math.isnan(found)


def test_every_plain_dtype_of_torch_has_a_code() -> None:
    plain = {
        value
        for value in vars(torch).values()
        if isinstance(value, torch.dtype) and not str(value).startswith(("torch.q", "torch.quint"))
    }
    assert plain <= set(DTYPES)
    assert len(set(DTYPES)) == len(DTYPES)


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_values_that_cannot_be_sent_are_refused() -> None:
    eighths = torch._empty_affine_quantized([2], scale=0.125, zero_point=0, dtype=torch.qint8)
    for value in (torch.eye(2).to_sparse(), torch.empty(1, device="meta"), eighths):
        with pytest.raises(WireError, match="dense, unquantized"):
            describe(value)
    with pytest.raises(WireError, match="type list cannot be sent"):
        describe([])  # type: ignore[arg-type]
