"""The header of every message: of a fixed size, with a version and checksums.

    header  magic version kind program generation spec_bytes index checksums    32 bytes
    spec    the number of values, then each value's tag and description         spec_bytes bytes

Numbers are little-endian. A spec follows only if it differs from the last one; see `spec`. Nothing
is pickled. Each field is checked before memory is allocated for it, so bytes that violate the
protocol raise a WireError.
"""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from pipepar.errors import WireError

MAGIC: Final = b"PPAR"
VERSION: Final = 2
MAX_SPEC_BYTES: Final = 1 << 24

_HEADER: Final = struct.Struct("<4sHBBIIQ")
_CHECKSUM: Final = struct.Struct("<II")  # CRC-32 of these fields, CRC-32 of the spec
HEADER_BYTES: Final = _HEADER.size + _CHECKSUM.size


class Kind(enum.IntEnum):
    """What follows a header."""

    MICROBATCH = 1
    END = 2
    """The end of a stream: nothing follows."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a micro-batch, or the end marker of a stream."""

    kind: Kind
    index: int
    """Position in the stream, 0-based; for END the number of micro-batches of the stream."""
    generation: int
    """The number of times that the receiver's buffers had to grow; see mpi_sender.py."""
    spec_bytes: int = 0
    """Bytes of the spec that follows; 0 if the last spec is still valid."""
    spec_checksum: int = 0
    """CRC-32 of the spec that follows."""
    program: int = 0
    """The program that the micro-batch is for; see `microbatch.Step`."""

    @classmethod
    def announcing(
        cls, kind: Kind, index: int, generation: int, spec: bytes, program: int = 0
    ) -> Header:
        """Return the header for an encoded spec; `spec` is empty if none follows."""
        return cls(kind, index, generation, len(spec), zlib.crc32(spec), program)

    def checked(self, spec: bytes | bytearray) -> bytes | bytearray:
        """Return an encoded spec after comparing it with the checksum in this header.

        Raises:
            WireError: the checksums differ.
        """
        if zlib.crc32(spec) != self.spec_checksum:
            raise WireError("a spec's checksum does not match its header")
        return spec

    def pack(self) -> bytes:
        """Encode as HEADER_BYTES bytes."""
        fields = _HEADER.pack(
            MAGIC, VERSION, self.kind, self.program, self.generation, self.spec_bytes, self.index
        )
        return fields + _CHECKSUM.pack(zlib.crc32(fields), self.spec_checksum)

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> Header:
        """Decode and check HEADER_BYTES bytes.

        Raises:
            WireError: the length, the magic, the version, the checksum or a field is invalid.
        """
        if len(data) != HEADER_BYTES:
            raise WireError(f"a header of {len(data)} bytes arrived, expected {HEADER_BYTES}")
        magic, version, kind, program, generation, spec_bytes, index = _HEADER.unpack_from(data)
        checksum, spec_checksum = _CHECKSUM.unpack_from(data, _HEADER.size)
        if magic != MAGIC:
            raise WireError(f"a header begins with {bytes(magic)!r}, expected {MAGIC!r}")
        if version != VERSION:
            raise WireError(
                f"a header of protocol version {version} arrived, expected {VERSION}; "
                "start every rank from the same installation of pipepar"
            )
        if zlib.crc32(data[: _HEADER.size]) != checksum:
            raise WireError("a header's checksum does not match its fields")
        if kind not in (Kind.MICROBATCH, Kind.END):
            raise WireError(f"a header of unknown kind {kind} arrived")
        if spec_bytes > MAX_SPEC_BYTES:
            raise WireError(f"a spec of {spec_bytes} bytes is announced, limit {MAX_SPEC_BYTES}")
        if kind == Kind.END and spec_bytes:
            raise WireError("the end of a stream announces a spec")
        return cls(Kind(kind), index, generation, spec_bytes, spec_checksum, program)
