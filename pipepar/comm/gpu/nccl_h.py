"""What pipepar needs of nccl.h: types, values and the functions' arguments, for ctypes."""

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


class Result(IntEnum):
    """ncclResult_t, as far as pipepar has something to say to it."""

    SUCCESS = 0
    UNHANDLED_CUDA_ERROR = 1
    SYSTEM_ERROR = 2
    INTERNAL_ERROR = 3
    INVALID_ARGUMENT = 4
    INVALID_USAGE = 5
    REMOTE_ERROR = 6
    IN_PROGRESS = 7


class UniqueId(Structure):
    """ncclUniqueId: what the ranks of one communicator find each other by."""

    _fields_ = (("internal", c_ubyte * 128),)


class Config(Structure):
    """ncclConfig_t as it was in NCCL 2.17.

    NCCL adds fields at the end, and reads of an older struct only what that has: newer versions
    take this one, and choose for themselves what they have added.
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
    def of(cls, max_ctas: int) -> Config:
        """Calls that come back when done, at most that many CTAs, and all else left to NCCL."""
        return cls(sizeof(cls), 0xCAFEBEEF, 21700, 1, _UNDEFINED, 1, max_ctas, None)


# Address, count, data type, the other rank, communicator, CUDA stream.
_TRANSFER: Final = (c_void_p, c_size_t, c_int, c_int, c_void_p, c_void_p)
_CHECKED: Final[Mapping[str, tuple[Any, ...]]] = {
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
_WORDS: Final[Mapping[str, tuple[Any, ...]]] = {
    "ncclGetErrorString": (c_int,),
    "ncclGetLastError": (c_void_p,),
}


def declare(library: CDLL) -> None:
    """Tell ctypes what the functions take and give."""
    for functions, restype in ((_CHECKED, c_int), (_WORDS, c_char_p)):
        for name, argtypes in functions.items():
            function = getattr(library, name)
            function.argtypes, function.restype = argtypes, restype
