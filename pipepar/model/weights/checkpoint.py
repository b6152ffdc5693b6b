"""Where each tensor of a checkpoint lies, so that a rank reads its own bytes and no others."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from pipepar.errors import WeightsError
from pipepar.microbatch import TensorSpec
from pipepar.model.module_tensors import SAMPLE_BYTES

# One read returns at most 2 GiB on Linux.
_READ_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor's place in a file, uncompressed."""

    name: str
    """What the file calls it."""
    file: Path
    """The file."""
    offset: int
    """Bytes from the file's start to the tensor's first element."""
    spec: TensorSpec
    """Its dtype, shape and strides."""

    @property
    def nbytes(self) -> int:
        """Bytes from its first element to the end of its last."""
        return self.spec.extent * self.spec.dtype.itemsize


class Checkpoint:
    """The tensors of one file or of several shards, found by name.

    Args:
        path: what the user named, for messages.
        file_of: for every tensor its file.
        header: reads one file's table of contents; asked once for each file that is needed.
    """

    def __init__(
        self,
        path: Path,
        file_of: Mapping[str, Path],
        header: Callable[[Path], Mapping[str, Stored]],
    ) -> None:
        self.path = path
        self._file_of = file_of
        self._header = header
        self._headers: dict[Path, Mapping[str, Stored]] = {}

    @property
    def names(self) -> Collection[str]:
        """Every tensor's name."""
        return self._file_of.keys()

    def locate(self, name: str) -> Stored:
        """Find one tensor.

        Args:
            name: one of `names`.

        Returns:
            Its place.

        Raises:
            WeightsError: its file is damaged, or does not hold it though the index says so.
        """
        file = self._file_of[name]
        if file not in self._headers:
            self._headers[file] = self._header(file)
        if name not in self._headers[file]:
            raise WeightsError(
                f"no tensor {name} in {file}, where {self.path} says it is; "
                f"copy the index and its shards again from one source"
            )
        return self._headers[file][name]


class TensorFiles:
    """``with TensorFiles() as files:`` reads tensors, and opens each file once."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._open: dict[Path, int] = {}

    def __enter__(self) -> TensorFiles:
        """Begin; nothing is open yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self._stack.close()

    def read(self, stored: Stored) -> torch.Tensor:
        """Read one tensor into memory of its own.

        Not through a memory map: a tensor in a map is unaligned, which changes what CPU kernels
        compute, and its pages count as this process's memory beside the copy that mends that.

        Args:
            stored: its place.

        Returns:
            The tensor, on the CPU, with the file's dtype and strides.

        Raises:
            WeightsError: the file cannot be read, or ends too early.
        """
        memory = torch.empty(stored.nbytes, dtype=torch.uint8)
        try:
            found = self._fill(stored, memory.numpy().data)
        except OSError as error:
            raise WeightsError(
                f"{stored.name} cannot be read from {stored.file}: {error.strerror}; "
                f"check the file and the file system it is on"
            ) from error
        if found < stored.nbytes:
            raise WeightsError(
                f"{stored.name} in {stored.file} has {found} of its {stored.nbytes} bytes, the "
                f"file is truncated; compare its size with its source and copy it again"
            )
        spec = stored.spec
        return memory.view(spec.dtype).as_strided(spec.shape, spec.stride)

    def sample(self, stored: Stored) -> bytes:
        """Read some bytes from a tensor's middle: by them one tensor is told from another.

        Args:
            stored: its place.

        Raises:
            OSError: the file cannot be read.
        """
        size = min(stored.nbytes, SAMPLE_BYTES)
        return os.pread(
            self._handle(stored.file), size, stored.offset + (stored.nbytes - size) // 2
        )

    def _fill(self, stored: Stored, memory: memoryview) -> int:
        """Read into memory as far as the file goes; the number of bytes read."""
        handle, done = self._handle(stored.file), 0
        while done < len(memory):
            part = memory[done : done + _READ_BYTES]
            count = os.preadv(handle, [part], stored.offset + done)
            if not count:
                break
            done += count
        return done

    def _handle(self, file: Path) -> int:
        if file not in self._open:
            handle = os.open(file, os.O_RDONLY)
            self._stack.callback(os.close, handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            self._open[file] = handle
        return self._open[file]
