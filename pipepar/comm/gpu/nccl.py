"""A thin binding of NCCL: a communicator of two ranks that sends bytes in one direction.

It uses the libnccl that torch has loaded: a second copy would take device memory and could be
another version. Every result is checked, and errors quote NCCL. Calls release the GIL.

Importing this module loads no library.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import CDLL, byref, c_int, c_void_p
from typing import Final

from pipepar.comm.gpu.nccl_h import UINT8, Config, Result, UniqueId, declare
from pipepar.errors import WireError

Version = tuple[int, int, int]

_LIBRARY: Final = "libnccl.so.2"

_NETWORK: Final = "name the network that all ranks share with NCCL_SOCKET_IFNAME"
_WARNINGS: Final = "run with NCCL_DEBUG=INFO and look for the first warning of any rank"
_EQUAL: Final = "give every rank the same NCCL and the same NCCL_ variables"
_REMEDIES: Final[Mapping[int, str]] = {
    Result.UNHANDLED_CUDA_ERROR: "look for an earlier CUDA error of this rank, and whether "
    "nvidia-smi shows its GPU and a driver as new as torch's CUDA",
    Result.SYSTEM_ERROR: f"{_NETWORK}, and see that /dev/shm has room",
    Result.INTERNAL_ERROR: f"{_WARNINGS}; {_NETWORK}",
    Result.INVALID_ARGUMENT: f"{_EQUAL}; if they are equal, this is a bug in pipepar",
    Result.INVALID_USAGE: f"{_EQUAL}, and a GPU of its own",
    Result.REMOTE_ERROR: f"look for the other rank's first error; if it has none, {_NETWORK}",
    Result.IN_PROGRESS: "unset NCCL_COMM_BLOCKING: pipepar needs blocking calls",
}
# NCCL's messages for two ranks on one GPU, before 2.30.3 and since.
_SHARED_GPU: Final = ("Duplicate GPU detected", "using the same GPU")
_SHARED_GPU_REMEDY: Final = (
    "start one rank a GPU, or, with NCCL 2.30.3 or newer (found {}), set "
    "NCCL_MULTI_RANK_GPU_ENABLE=1"
)


class Nccl:
    """The functions of a loaded libnccl.

    Args:
        library: the loaded shared library.

    Attributes:
        version: the version of the library; torch may have been built with another one.
    """

    def __init__(self, library: CDLL) -> None:
        self._library = library
        declare(library)
        self.version: Version = (0, 0, 0)
        code = c_int()
        self.call("ncclGetVersion", "NCCL", byref(code))
        self.version = (code.value // 10_000, code.value // 100 % 100, code.value % 100)

    @classmethod
    def load(cls) -> Nccl:
        """Return the NCCL that the process loaded when it imported torch.

        Raises:
            WireError: no NCCL is loaded.
        """
        try:
            library = CDLL(_LIBRARY, os.RTLD_NOW | os.RTLD_NOLOAD)
        except OSError as error:
            raise WireError(
                f"no {_LIBRARY} is loaded; GPUs exchange tensors through NCCL: install a torch "
                f"built for CUDA, which includes it (if NCCL is linked into your torch, add a "
                f"{_LIBRARY} to LD_PRELOAD), or run with --device cpu"
            ) from error
        return cls(library)

    def unique_id(self) -> bytes:
        """Return a new id, 128 bytes, by which the ranks of one communicator connect.

        This process then listens for their connections.

        Raises:
            WireError: NCCL reports an error, for example that it finds no network interface.
        """
        unique_id = UniqueId()
        self.call("ncclGetUniqueId", "a new communicator", byref(unique_id))
        return bytes(unique_id)

    @contextmanager
    def group(self) -> Iterator[None]:
        """Collect the sends and receives of the body, and start them together at its end.

        Raises:
            WireError: NCCL reports an error.
        """
        self.call("ncclGroupStart", "a group of transfers")
        try:
            yield
        finally:
            self.call("ncclGroupEnd", "a group of transfers")

    def call(self, function: str, name: str, *arguments: object) -> None:
        """Call a function of NCCL.

        Args:
            function: the name of the function.
            name: the edge or the object of the call; error messages begin with it.
            arguments: the arguments, as in nccl.h.

        Raises:
            WireError: the result is not ncclSuccess.
        """
        result = getattr(self._library, function)(*arguments)
        if result == Result.SUCCESS:
            return
        description = self.describe(result)
        shared = any(sign in description for sign in _SHARED_GPU)
        found = ".".join(map(str, self.version))
        remedy = _SHARED_GPU_REMEDY.format(found) if shared else _REMEDIES.get(result, _WARNINGS)
        raise WireError(f"{name}: {function} returned {result}, {description}; {remedy}")

    def describe(self, result: int) -> str:
        """Return NCCL's text for a result, and its last warning, if any.

        NCCL stores one last warning for all threads and never clears it, so it may be an old one.
        """
        text: bytes = self._library.ncclGetErrorString(result)
        warning: bytes | None = self._library.ncclGetLastError(None)
        last = f"; its last warning: {warning.decode(errors='replace')}" if warning else ""
        return text.decode(errors="replace") + last


class Communicator:
    """A communicator of the two ranks of one directed edge; created by `start`.

    One thread sends, receives and closes. Any thread may call `problem` and `abort`.
    """

    def __init__(self, nccl: Nccl, handle: int, peer: int, edge: str) -> None:
        self._nccl = nccl
        self._handle: int | None = handle
        self._peer = peer
        self._edge = edge
        self._handle_lock = threading.Lock()

    @classmethod
    def start(cls, nccl: Nccl, unique_id: bytes, rank: int, size: int, edge: str) -> Communicator:
        """Connect the two ranks. *Collective.*

        Uses the current CUDA device of the calling thread. There is no timeout: the call waits for
        the other rank as long as NCCL does.

        Args:
            nccl: the library.
            unique_id: an id from `Nccl.unique_id`, the same on both ranks, used once.
            rank: 0 for the producer, 1 for the consumer.
            size: 2; or 1 for a rank that sends to itself, in a group.
            edge: the name of the edge, such as "edge rank 0 -> rank 1"; error messages begin
                with it.

        Raises:
            WireError: NCCL reports an error. Its partial state is not freed: only ncclCommAbort
                could free it, which may hang.
        """
        handle = c_void_p()
        name, config = UniqueId.from_buffer_copy(unique_id), Config.default()
        nccl.call("ncclCommInitRankConfig", edge, byref(handle), size, name, rank, byref(config))
        assert handle.value is not None
        return cls(nccl, handle.value, size - 1 - rank, edge)

    def send(self, address: int, nbytes: int, stream: int) -> None:
        """Enqueue a send of bytes to the other rank, which must receive the same number.

        Args:
            address: the address in device memory, which must not change before the send is done.
            nbytes: the number of bytes.
            stream: the handle of the CUDA stream.

        Raises:
            WireError: NCCL reports an error, or the communicator is closed.
        """
        self._transfer("ncclSend", address, nbytes, stream)

    def receive(self, address: int, nbytes: int, stream: int) -> None:
        """Enqueue a receive of bytes from the other rank; arguments and errors as in `send`."""
        self._transfer("ncclRecv", address, nbytes, stream)

    def problem(self) -> str:
        """Return NCCL's description of an asynchronous error, such as a network failure.

        Returns:
            An empty string if there is no error, and after `close` or `abort`.

        Raises:
            WireError: the query itself fails.
        """
        found = c_int()
        with self._handle_lock:  # the handle must not be freed during the call
            if self._handle is None:
                return ""
            self._call("ncclCommGetAsyncError", self._handle, byref(found))
        fine = found.value in (Result.SUCCESS, Result.IN_PROGRESS)
        return "" if fine else self._nccl.describe(found.value)

    def close(self) -> None:
        """Wait for transfers under way, then free the communicator. *Collective.*

        May be called twice, and does nothing after `abort`.

        Raises:
            WireError: NCCL reports an error; `abort` may still be called.
        """
        if self._handle is None:
            return
        self._call("ncclCommFinalize", self._handle)
        handle = self._take_handle()
        if handle is not None:  # None: another thread has aborted it
            self._call("ncclCommDestroy", handle)

    def abort(self) -> None:
        """Stop transfers under way and free the communicator. May be called twice.

        Any thread may call it, also while another one is blocked in NCCL. It may hang, so callers
        should bound the wait.

        Raises:
            WireError: NCCL reports an error.
        """
        handle = self._take_handle()
        if handle is not None:
            self._call("ncclCommAbort", handle)

    def _transfer(self, function: str, address: int, nbytes: int, stream: int) -> None:
        handle = self._handle
        if handle is None:
            raise WireError(f"{self._edge}: {function} on a communicator that is closed")
        self._call(function, address, nbytes, UINT8, self._peer, handle, stream)

    def _call(self, function: str, *arguments: object) -> None:
        self._nccl.call(function, self._edge, *arguments)

    def _take_handle(self) -> int | None:
        """Return the handle and clear it, so that one caller frees it; None if it is cleared."""
        with self._handle_lock:
            handle, self._handle = self._handle, None
        return handle
