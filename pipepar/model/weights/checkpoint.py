"""The location of each tensor in a checkpoint, so that a rank reads only its own bytes."""

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

# Linux returns at most 2 GiB per read.
_READ_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Stored:
    """The location of an uncompressed tensor in a file."""

    name: str
    """Its name in the file."""
    file: Path
    """The path of the file."""
    offset: int
    """The position of its first element in the file, in bytes."""
    spec: TensorSpec
    """Its dtype, shape and strides."""

    @property
    def nbytes(self) -> int:
        """Bytes from the start of its first element to the end of its last."""
        return self.spec.extent * self.spec.dtype.itemsize


class Checkpoint:
    """The tensors of one file or of several shards, by name.

    Args:
        path: the path that the user specified, for messages.
        file_of: the file of each tensor, by name.
        header: reads the locations of the tensors in a file; called once for each file needed.
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
        """The names of all tensors."""
        return self._file_of.keys()

    def locate(self, name: str) -> Stored:
        """Return the location of one tensor.

        Args:
            name: one of `names`.

        Raises:
            WeightsError: its file is damaged, or lacks the tensor although the index lists it.
        """
        file = self._file_of[name]
        if file not in self._headers:
            self._headers[file] = self._header(file)
        if name not in self._headers[file]:
            raise WeightsError(
                f"no tensor {name} in {file}, where {self.path} lists it; "
                f"copy the index and its shards again from one source"
            )
        return self._headers[file][name]


class TensorFiles:
    """A context manager that reads tensors from files, and opens each file only once."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._open: dict[Path, int] = {}

    def __enter__(self) -> TensorFiles:
        """Return the object itself; no file is open yet."""
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

        A memory map is not used. A tensor in a map may be unaligned, which changes the results of
        CPU kernels; and an aligned copy would take memory in addition to the pages of the map.

        Args:
            stored: the location of the tensor.

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
        """Return bytes from the middle of a tensor, for a fingerprint.

        Args:
            stored: the location of the tensor.

        Returns:
            `SAMPLE_BYTES` bytes, or all bytes of a smaller tensor; fewer if the file is truncated.

        Raises:
            OSError: the file cannot be read.
        """
        size = min(stored.nbytes, SAMPLE_BYTES)
        return os.pread(
            self._handle(stored.file), size, stored.offset + (stored.nbytes - size) // 2
        )

    def _fill(self, stored: Stored, memory: memoryview) -> int:
        """Read a tensor's bytes into memory, and return their number; fewer if the file ends.

        Raises:
            OSError: the file cannot be read.
        """
        handle, done = self._handle(stored.file), 0
        while done < len(memory):
            part = memory[done : done + _READ_BYTES]
            count = os.preadv(handle, [part], stored.offset + done)
            if not count:
                break
            done += count
        return done

    def _handle(self, file: Path) -> int:
        """Return the descriptor of a file, which is opened at the first call and then reused."""
        if file not in self._open:
            handle = os.open(file, os.O_RDONLY)
            self._stack.callback(os.close, handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            self._open[file] = handle
        return self._open[file]
