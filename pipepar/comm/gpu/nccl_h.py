"""The types, constants and function signatures of nccl.h that pipepar uses, for ctypes."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import (
    CDLL,
    POINTER,
    Structure,
    c_char_p,
    c_int,
    c_size_t,
    c_ubyte,
    c_uint,
    c_void_p,
    sizeof,
)
from enum import IntEnum
from typing import Any, Final

UINT8: Final = 1
"""ncclUint8, of ncclDataType_t."""

_UNDEFINED: Final = -(2**31)

# Multiprocessors that a transfer may occupy. It occupies them while it waits for the other rank,
# and a GPU has a communicator for each of its edges: without a limit, waiting would slow down
# computing. The environment variable NCCL_MAX_CTAS has precedence.
_MAX_CTAS: Final = 4


class Result(IntEnum):
    """The values of ncclResult_t for which pipepar has a remedy, and those of success."""

    SUCCESS = 0
    UNHANDLED_CUDA_ERROR = 1
    SYSTEM_ERROR = 2
    INTERNAL_ERROR = 3
    INVALID_ARGUMENT = 4
    INVALID_USAGE = 5
    REMOTE_ERROR = 6
    IN_PROGRESS = 7


class UniqueId(Structure):
    """ncclUniqueId: the id by which the ranks of one communicator connect."""

    _fields_ = (("internal", c_ubyte * 128),)


class Config(Structure):
    """ncclConfig_t of NCCL 2.17.

    NCCL only appends fields, and newer versions accept this struct with defaults for the rest.
    """

    _fields_ = (
        ("size", c_size_t),
        ("magic", c_uint),
        ("version", c_uint),
        ("blocking", c_int),
        ("cgaClusterSize", c_int),
        ("minCTAs", c_int),
        ("maxCTAs", c_int),
        ("netName", c_char_p),
    )

    @classmethod
    def default(cls) -> Config:
        """Return the configuration of every communicator: blocking calls and few CTAs."""
        return cls(sizeof(cls), 0xCAFEBEEF, 21700, 1, _UNDEFINED, 1, _MAX_CTAS, None)


# Address, count, data type, peer, communicator, CUDA stream.
_TRANSFER: Final = (c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p)
_RETURNING_RESULT: Final[Mapping[str, tuple[Any, ...]]] = {
    "ncclGetVersion": (POINTER(c_int),),
    "ncclGetUniqueId": (POINTER(UniqueId),),
    # Communicator, size, id, rank, configuration.
    "ncclCommInitRankConfig": (POINTER(c_void_p), c_int, UniqueId, c_int, POINTER(Config)),
    "ncclCommFinalize": (c_void_p,),
    "ncclCommDestroy": (c_void_p,),
    "ncclCommAbort": (c_void_p,),
    "ncclCommGetAsyncError": (c_void_p, POINTER(c_int)),
    "ncclSend": _TRANSFER,
    "ncclRecv": _TRANSFER,
    "ncclGroupStart": (),
    "ncclGroupEnd": (),
}
_RETURNING_TEXT: Final[Mapping[str, tuple[Any, ...]]] = {
    "ncclGetErrorString": (c_int,),
    "ncclGetLastError": (c_void_p,),
}


def declare(library: CDLL) -> None:
    """Set the argument and result types of a library's functions."""
    for functions, restype in ((_RETURNING_RESULT, c_int), (_RETURNING_TEXT, c_char_p)):
        for name, argtypes in functions.items():
            function = getattr(library, name)
            function.argtypes, function.restype = argtypes, restype
