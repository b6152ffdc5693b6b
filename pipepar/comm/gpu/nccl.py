"""NCCL, as little of it as channels need: two ranks, one sends bytes and the other receives them.

A thin binding of the libnccl that is in the process already, which is torch's own: a second one
would take memory of the GPU besides, and be another version. Every answer is checked, and a
refusal is told in NCCL's own words. Other threads run while a call is in NCCL.

Importing this module loads nothing and starts nothing.
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

MAX_CTAS: Final = 4
"""See `Communicator.start`."""

_LIBRARY: Final = "libnccl.so.2"

_NETWORK: Final = "name the network that all ranks share with NCCL_SOCKET_IFNAME"
_WARNINGS: Final = "run with NCCL_DEBUG=INFO and look for the first warning of any rank"
_ALIKE: Final = "give every rank the same NCCL and the same NCCL_ variables"
_REMEDIES: Final[Mapping[int, str]] = {
    Result.UNHANDLED_CUDA_ERROR: "look for an earlier CUDA error of this rank, and whether "
    "nvidia-smi shows its GPU and a driver as new as torch's CUDA",
    Result.SYSTEM_ERROR: f"{_NETWORK}, and see that /dev/shm has room",
    Result.INTERNAL_ERROR: f"{_WARNINGS}; {_NETWORK}",
    Result.INVALID_ARGUMENT: f"{_ALIKE}; where they have them, this is a mistake of pipepar",
    Result.INVALID_USAGE: f"{_ALIKE}, and a GPU of its own",
    Result.REMOTE_ERROR: f"look for the other rank's first error; if it has none, {_NETWORK}",
    Result.IN_PROGRESS: "unset NCCL_COMM_BLOCKING: pipepar needs calls that come back when done",
}
# NCCL's words for two ranks on one GPU, before 2.30.3 and since.
_SHARED_GPU: Final = ("Duplicate GPU detected", "using the same GPU")
_SHARED_GPU_REMEDY: Final = (
    "start one rank a GPU, or, with NCCL 2.30.3 or newer (found {}), set "
    "NCCL_MULTI_RANK_GPU_ENABLE=1"
)


class Nccl:
    """One loaded libnccl.

    Args:
        library: where NCCL's functions are found.

    Attributes:
        version: what the library says of itself; torch may have been built with another.
    """

    def __init__(self, library: CDLL) -> None:
        self._library = library
        declare(library)
        self.version: Version = (0, 0, 0)
        code = c_int()
        self.call("ncclGetVersion", "NCCL", byref(code))
        self.version = (code.value // 10_000, code.value // 100 % 100, code.value % 100)

    @classmethod
    def load(cls, path: str | None = None) -> Nccl:
        """Find the library. Import torch first, so that its library is there.

        Args:
            path: a library's file; by default the one that the process has loaded already.

        Raises:
            WireError: none is loaded, or this one cannot be.
        """
        mode = os.RTLD_NOW if path else os.RTLD_NOW | os.RTLD_NOLOAD
        try:
            library = CDLL(path or _LIBRARY, mode)
        except OSError as error:
            found = f"{path} cannot be loaded, {error}" if path else f"no {_LIBRARY} is loaded"
            raise WireError(
                f"{found}; GPUs exchange tensors through NCCL: install a torch built for CUDA, "
                f"which brings it (if yours has it built in, put a {_LIBRARY} into LD_PRELOAD), "
                "or run with --device cpu"
            ) from error
        return cls(library)

    def unique_id(self) -> bytes:
        """Something new for a communicator's ranks to find each other by; 128 bytes.

        From now on this process listens for them.

        Raises:
            WireError: it has no network to listen on.
        """
        unique_id = UniqueId()
        self.call("ncclGetUniqueId", "a new communicator", byref(unique_id))
        return bytes(unique_id)

    @contextmanager
    def group(self) -> Iterator[None]:
        """Sends and receives that need each other: they start together, at the end.

        Raises:
            WireError: NCCL refuses them.
        """
        self.call("ncclGroupStart", "a group of transfers")
        try:
            yield
        finally:
            self.call("ncclGroupEnd", "a group of transfers")

    def call(self, function: str, name: str, *arguments: object) -> None:
        """Call one of NCCL's functions.

        Args:
            function: its name.
            name: of the edge or the object that it is for; an error begins with it.
            arguments: as in nccl.h.

        Raises:
            WireError: it gave anything but ncclSuccess.
        """
        result = getattr(self._library, function)(*arguments)
        if result == Result.SUCCESS:
            return
        words = self.words(result)
        shared = any(sign in words for sign in _SHARED_GPU)
        found = ".".join(map(str, self.version))
        remedy = _SHARED_GPU_REMEDY.format(found) if shared else _REMEDIES.get(result, _WARNINGS)
        raise WireError(f"{name}: {function} gave {result}, {words}; {remedy}")

    def words(self, result: int) -> str:
        """NCCL's own words for a result, and what it last warned of, if anything.

        NCCL keeps its last warning for good, and for all threads: it may be an older one.
        """
        words: bytes = self._library.ncclGetErrorString(result)
        warning: bytes | None = self._library.ncclGetLastError(None)
        last = f"; its last warning: {warning.decode(errors='replace')}" if warning else ""
        return words.decode(errors="replace") + last


class Communicator:
    """Two ranks and the one directed edge between them; made by `start`.

    One thread sends, receives and closes; `problem` and `abort` may come from any other.
    """

    def __init__(self, nccl: Nccl, handle: int, peer: int, edge: str) -> None:
        self._nccl = nccl
        self._handle: int | None = handle
        self._peer = peer
        self._edge = edge
        self._taking = threading.Lock()

    @classmethod
    def start(
        cls, nccl: Nccl, unique_id: bytes, rank: int, size: int, edge: str, max_ctas: int = MAX_CTAS
    ) -> Communicator:
        """Meet the other rank, and wait for it. *Collective* over the two.

        Args:
            nccl: the library.
            unique_id: the same on both ranks, used once.
            rank: 0 for the producer, 1 for the consumer.
            size: 2; or 1, for a rank that sends to itself, in a group.
            edge: its name, such as "edge rank 0 -> rank 1"; every error begins with it.
            max_ctas: how many of the GPU's multiprocessors a transfer may take. It keeps them for
                as long as it waits for the other rank, and a GPU has a communicator for each of
                its edges: without a limit, waiting would take from computing. The environment's
                NCCL_MAX_CTAS goes before it.

        The calling thread's current CUDA device is the one that this rank uses. There is no
        giving up: a rank whose other one never comes waits as long as NCCL does.

        Raises:
            WireError: NCCL refuses. What it made so far is left to the end of the process: only
                aborting could free it, which may hang.
        """
        handle = c_void_p()
        name, config = UniqueId.from_buffer_copy(unique_id), Config.of(max_ctas)
        nccl.call("ncclCommInitRankConfig", edge, byref(handle), size, name, rank, byref(config))
        assert handle.value is not None
        return cls(nccl, handle.value, size - 1 - rank, edge)

    def send(self, address: int, nbytes: int, stream: int) -> None:
        """Send to the other rank, which receives as many bytes. Returns at once.

        Args:
            address: where they lie on the GPU; to stay as they are until the stream is past this.
            nbytes: how many.
            stream: the CUDA stream's handle.

        Raises:
            WireError: NCCL refuses, or the communicator is closed.
        """
        self._transfer("ncclSend", address, nbytes, stream)

    def receive(self, address: int, nbytes: int, stream: int) -> None:
        """Receive from the other rank, which sends as many bytes; else as `send`."""
        self._transfer("ncclRecv", address, nbytes, stream)

    def problem(self) -> str:
        """What went wrong since, on the network for instance, in NCCL's own words.

        Returns:
            An empty string where nothing did, or after `close` or `abort`.

        Raises:
            WireError: NCCL cannot tell.
        """
        found = c_int()
        with self._taking:  # what is asked stays until it has answered
            if self._handle is None:
                return ""
            self._call("ncclCommGetAsyncError", self._handle, byref(found))
        fine = found.value in (Result.SUCCESS, Result.IN_PROGRESS)
        return "" if fine else self._nccl.words(found.value)

    def close(self) -> None:
        """Wait for what is under way, then free everything. *Collective* over the two.

        May be called twice; after `abort` it does nothing.

        Raises:
            WireError: NCCL refuses; `abort` may still be called.
        """
        if self._handle is None:
            return
        self._call("ncclCommFinalize", self._handle)
        handle = self._take()
        if handle is not None:  # else it was aborted meanwhile
            self._call("ncclCommDestroy", handle)

    def abort(self) -> None:
        """Give up what is under way, and free everything. May be called twice.

        Any thread may do so, whatever another one waits for. It may hang: wait for it no longer
        than you can. Nothing is asked of NCCL afterwards.

        Raises:
            WireError: NCCL refuses.
        """
        handle = self._take()
        if handle is not None:
            self._call("ncclCommAbort", handle)

    def _transfer(self, function: str, address: int, nbytes: int, stream: int) -> None:
        handle = self._handle
        if handle is None:
            raise WireError(f"{self._edge}: {function} on a communicator that is closed")
        self._call(function, address, nbytes, UINT8, self._peer, handle, stream)

    def _call(self, function: str, *arguments: object) -> None:
        self._nccl.call(function, self._edge, *arguments)

    def _take(self) -> int | None:
        """The handle, for the one that frees it."""
        with self._taking:
            handle, self._handle = self._handle, None
        return handle
