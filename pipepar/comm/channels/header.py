"""The header in front of every message of a channel: of a fixed size, with a checksum.

Nothing on the wire is pickled. Every field is checked before anything is allocated for it: bytes
that do not fit the protocol are a WireError, never a crash and never a large allocation.

    header  magic version kind program generation spec_bytes index checksums    32 bytes
    spec    count, then for each value: a tag and what the tag calls for        spec_bytes bytes

Numbers are little-endian. The spec follows where it changed; see `spec`.
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
_CHECKSUM: Final = struct.Struct("<II")  # CRC-32 of the fields above, and of the spec
HEADER_BYTES: Final = _HEADER.size + _CHECKSUM.size


class Kind(enum.IntEnum):
    """What a header announces."""

    MICROBATCH = 1
    END = 2
    """The end of a stream; the next one may follow."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first message of every micro-batch."""

    kind: Kind
    index: int
    """Position in the stream, 0-based; for END the number of micro-batches sent."""
    generation: int
    """Counts how often the sender has outgrown the receiver's buffers; see mpi_sender.py."""
    spec_bytes: int = 0
    """Length of the spec that follows; 0 where the last one still holds."""
    spec_checksum: int = 0
    """CRC-32 of that spec."""
    program: int = 0
    """Which program of the stage the micro-batch is for; see `Step`."""

    @classmethod
    def announcing(
        cls, kind: Kind, index: int, generation: int, spec: bytes, program: int = 0
    ) -> Header:
        """The header in front of an encoded spec, empty where none follows."""
        return cls(kind, index, generation, len(spec), zlib.crc32(spec), program)

    def checked(self, spec: bytes | bytearray) -> bytes | bytearray:
        """The spec that this header announced, if it is that.

        Raises:
            WireError: its checksum differs.
        """
        if zlib.crc32(spec) != self.spec_checksum:
            raise WireError("a spec's checksum does not match its header")
        return spec

    def pack(self) -> bytes:
        """Encode to HEADER_BYTES bytes."""
        fields = _HEADER.pack(
            MAGIC, VERSION, self.kind, self.program, self.generation, self.spec_bytes, self.index
        )
        return fields + _CHECKSUM.pack(zlib.crc32(fields), self.spec_checksum)

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> Header:
        """Decode and check HEADER_BYTES bytes.

        Raises:
            WireError: a field is not what the protocol allows.
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
