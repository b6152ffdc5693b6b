"""What every output file has in common: each sample once, checked, complete or nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from pipepar.data.partial import Partial, naming
from pipepar.errors import InputError, PipeparError


class Writer(ABC):
    """Writes one output file; ``open_output`` makes one. Local."""

    def __init__(self, path: Path, count: int) -> None:
        """Take note of the file; nothing is on disk before the context is entered.

        Args:
            path: the output file.
            count: number of samples.
        """
        self.path = path
        self.count = count
        self._written = bytearray(count)
        self._names: list[str] = []
        self._partial: Partial | None = None

    def write(self, samples: torch.Tensor, values: Mapping[str, torch.Tensor] | list[Any]) -> None:
        """Write the rows of some samples.

        Args:
            samples: int64 [B], positions in the user's input, 0-based, in any order.
            values: the model's outputs by name, each [B, ...] on any device, the same names in
                every call; or a list of one JSON value a sample, for a format that can hold it.

        Raises:
            InputError: a value has not one row a sample, or does not fit the file's format.
            PipeparError: a sample is out of range or was written before, or the writer's context
                is not entered.
            OSError: the file system refuses (a full disk, for example); it names the file.
        """
        file = self._open_partial().file
        positions: list[int] = samples.tolist()
        self._check_positions(positions)
        if isinstance(values, list):
            self._check_answers(values, len(positions))
        else:
            self._check_values(values, len(positions))
        if not positions:
            return
        with naming(self.path):
            if isinstance(values, list):
                self._store_answers(positions, values)
            else:
                rows = {name: value.detach().cpu() for name, value in values.items()}
                self._store(file, positions, rows)
        for position in positions:
            self._written[position] = 1

    def __enter__(self) -> Writer:
        """Open the hidden partial file."""
        with naming(self.path):
            self._partial = Partial(self.path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put the complete file under its name; after an exception remove what there is."""
        partial = self._open_partial()
        try:
            if error is None:
                self._check_complete()
                with naming(self.path):
                    self._finish(partial.file)
                    partial.commit()
        finally:
            partial.discard()
            self._partial = None
            self._release()

    @abstractmethod
    def _store(self, file: FileIO, positions: list[int], rows: dict[str, torch.Tensor]) -> None:
        """Keep rows, whose positions and number are checked, in the file or on the way to it."""

    def _store_answers(self, positions: list[int], answers: list[Any]) -> None:
        """Keep one JSON value a sample; most formats hold arrays alone."""
        raise InputError(
            f"output {self.path} holds arrays; found a list of {type(answers[0]).__name__}, one a "
            "sample. Write to a .jsonl file, or return tensors."
        )

    @abstractmethod
    def _finish(self, file: FileIO) -> None:
        """Make the file complete, all samples being stored."""

    def _release(self) -> None:  # noqa: B027 - few writers hold more than the file
        """Give back what the writer holds besides the file."""

    def _open_partial(self) -> Partial:
        if self._partial is None:
            raise PipeparError(
                f"output {self.path} is not open; expected use inside its context. "
                "Write inside 'with open_output(...) as writer'."
            )
        return self._partial

    def _check_positions(self, positions: list[int]) -> None:
        for position, times in Counter(positions).items():
            if not 0 <= position < self.count:
                raise PipeparError(
                    f"output {self.path}: sample {position} is out of range; expected 0 to "
                    f"{self.count - 1}. Open the output with the input's number of samples."
                )
            if times > 1 or self._written[position]:
                raise PipeparError(
                    f"output {self.path}: sample {position} arrived twice; expected each sample "
                    "once. Send every row of the input through the pipeline once."
                )

    def _check_values(self, values: Mapping[str, torch.Tensor], count: int) -> None:
        self._names = self._names or list(values)
        if not values or set(values) != set(self._names):
            expected = f"{listed(self._names)} again" if self._names else "at least one"
            raise InputError(
                f"output {self.path}: found the values {listed(values) or '(none)'}; expected "
                f"{expected}. Let the model return the same values for every micro-batch."
            )
        for name, value in values.items():
            if value.ndim == 0 or value.shape[0] != count:
                raise InputError(
                    f"output {self.path}: {name!r} has shape {tuple(value.shape)}; expected "
                    f"{count} rows along dimension 0, one a sample of the micro-batch. Let the "
                    "model return one row a sample."
                )

    def _check_answers(self, answers: list[Any], count: int) -> None:
        if len(answers) != count:
            raise InputError(
                f"output {self.path}: found a list of {len(answers)} values for {count} samples; "
                "expected one a sample of the micro-batch. Return one value for each of them."
            )

    def _check_complete(self) -> None:
        missing = self._written.count(0)
        if missing:
            raise PipeparError(
                f"output {self.path}: {missing} of {self.count} samples never arrived, sample "
                f"{self._written.index(0)} first; expected all of them. Nothing was put under "
                "this name; run again."
            )


def listed(names: Iterable[str]) -> str:
    """Return names as a message shows them: quoted, with commas between."""
    return ", ".join(map(repr, names))
