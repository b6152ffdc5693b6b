"""The base of all writers: checks that each sample is written once, and writes the journal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch

from pipepar.data.sample_set import SampleSet
from pipepar.data.writers.journal import Journal, Record, TrackedFile, journal_of
from pipepar.data.writers.partial import Partial, named_os_errors
from pipepar.data.writers.unfinished import Resumable, Unfinished
from pipepar.errors import InputError, PipeparError

# Blank rows that are written at a time, to bound memory.
_BLANK_ROWS: Final = 64


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """The open files of a writer whose context is entered."""

    partial: Partial
    """The partial file; renamed when it is complete."""
    tracked: TrackedFile
    """Writes to the partial file, and tracks its writes since the last record."""
    journal: Journal | None
    """None for an output that cannot be resumed, or that an earlier run renamed."""
    renamed: bool
    """Whether an earlier run renamed the output, and ended before it removed the journal."""


class RowWriter(ABC):
    """Writes one output file; made by ``open_output``."""

    def __init__(self, path: Path, count: int, resumable: Resumable | None = None) -> None:
        """Store the arguments; nothing is written before the context is entered.

        Args:
            path, count, resumable: as for `open_output`; the path is that of the target.
        """
        self.path = path
        self.count = count
        self.done = SampleSet(count)
        """The samples that are written, including those of an earlier run."""
        self._resumable = resumable
        self._names: list[str] = []
        self._open: _OpenFile | None = None
        self._suspended = False

    def write(
        self,
        samples: torch.Tensor,
        values: Mapping[str, torch.Tensor] | list[Any],
        note: Any = None,
    ) -> None:
        """Write the rows of some samples.

        Args:
            samples: int64 [B], 0-based positions in the user's input, in any order.
            values: the model's outputs by name, each [B, ...] on any device, the same names in
                every call; or a list of one JSON value per sample, if the format supports answers.
            note: a JSON value, passed to `Resumable.on_restored` when the job is resumed; ignored
                if there are no samples or no journal.

        Raises:
            InputError: there is not one row per sample, the names differ from those of earlier
                calls, the format does not support a value, or another run replaced the file.
            PipeparError: a sample is out of range or already written, or the context of the writer
                is not entered.
            OSError: the file system refuses, for example a full disk; it names the file.
        """
        file = self._opened()
        positions: list[int] = samples.tolist()
        self._check_positions(positions)
        if isinstance(values, list):
            self._check_answers(values, len(positions))
        else:
            self._check_values(values, len(positions))
        if not positions:
            return
        with named_os_errors(self.path):
            if isinstance(values, list):
                layout = self._write_answers(file.tracked, positions, values)
            else:
                rows = {name: value.detach().cpu() for name, value in values.items()}
                layout = self._write_rows(file.tracked, positions, rows)
            record = file.tracked.take_record(positions, layout, note)
            if file.journal is not None:
                file.journal.add(record)
        self.done.add(positions)

    def add_note(self, note: Any) -> None:
        """Write a record without rows to the journal; do nothing without a journal.

        Args:
            note: as for `write`.

        Raises:
            InputError, PipeparError, OSError: as for `write`.
        """
        journal = self._opened().journal
        if journal is not None:
            with named_os_errors(self.path):
                journal.add(Record((), (), 0, None, note))

    def write_blank(self, samples: torch.Tensor, note: Any = None) -> None:
        """Write placeholder rows: null in JSON, NaN in float and complex dtypes, else 0.

        Args:
            samples: int64 [B], as for `write`.
            note: one note for all samples, as for `write`.

        Raises:
            InputError: no row has been written to an array format, so the shape is unknown.
            PipeparError, OSError: as for `write`.
        """
        for begin in range(0, len(samples), _BLANK_ROWS):
            some = samples[begin : begin + _BLANK_ROWS]
            self.write(some, self._blank_rows(len(some)), None if begin else note)

    def suspend(self) -> None:
        """Do not finish the output when the context is left, as after an exception."""
        self._suspended = True

    def __enter__(self) -> RowWriter:
        """Open the partial file, and restore the valid records of the unfinished output, if any.

        Raises:
            InputError: another run writes to the partial file, or the journal is damaged.
            OSError: the file system refuses.
        """
        with named_os_errors(self.path):
            partial = self._resumable.partial if self._resumable else Partial(self.path)
            try:
                self._open = self._start(partial, self._resumable)
            except BaseException:
                partial.keep()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Rename the complete file and remove the journal.

        After an exception, or after `suspend`, keep the partial file and the journal if they have
        rows, else remove both.

        Raises:
            PipeparError: a sample is not written.
            InputError, OSError: as for `write`.
        """
        file, self._open = self._opened(), None
        partial, journal = file.partial, file.journal
        finished = False
        try:
            with named_os_errors(self.path):
                if journal is not None:
                    journal.close()
                if error is None and not self._suspended:
                    self._check_complete()
                    if not file.renamed:
                        self._finish(partial)
                    finished = True
        finally:
            # An output with notes but without rows is not worth resuming.
            worth_resuming = journal is not None and journal.has_records and len(self.done) > 0
            if finished:
                journal_of(self.path).unlink(missing_ok=True)
                partial.discard()
            elif worth_resuming or file.renamed:
                partial.keep()
            else:
                if partial.is_own:  # otherwise the files are those of another run
                    journal_of(self.path).unlink(missing_ok=True)
                partial.discard()

    def _start(self, partial: Partial, resumable: Resumable | None) -> _OpenFile:
        """Continue the unfinished output, or start from the beginning."""
        left = resumable.usable(self.count) if resumable else None
        if left is None:
            # The journal first, since it must not refer to rows that no longer exist.
            journal_of(self.path).unlink(missing_ok=True)
            partial.clear()
        records = self._restored(left, resumable.on_restored) if left and resumable else iter(())
        renamed = left is not None and left.renamed
        journal = None
        if renamed:
            deque(records, 0)  # restores all records; no journal is written
            self._check_complete()
        elif resumable:
            journal = Journal(partial, resumable.header, records)
        # After `clear`, which may replace `partial.file`.
        return _OpenFile(partial, TrackedFile(partial.file), journal, renamed)

    def _restored(
        self, left: Unfinished, on_restored: Callable[[list[int], Any], None]
    ) -> Iterator[Record]:
        """Restore the valid records of an earlier run, each sample once, and yield them."""
        for record, data in left.valid_records():
            samples = record.samples
            fits = all(0 <= at < self.count and at not in self.done for at in samples)
            if fits and (not samples or self._restore(record, data)):
                self.done.add(samples)
                on_restored(samples, record.note)
                yield record

    @abstractmethod
    def _blank_rows(self, count: int) -> Mapping[str, torch.Tensor] | list[Any]:
        """Return `count` placeholder rows; see `write_blank`."""

    @abstractmethod
    def _write_rows(
        self, file: TrackedFile, positions: list[int], rows: dict[str, torch.Tensor]
    ) -> Any:
        """Write rows, whose positions and number are checked, and return `Record.layout`."""

    def _write_answers(self, file: TrackedFile, positions: list[int], answers: list[Any]) -> Any:
        """Write one JSON value per sample, and return `Record.layout`; array formats raise."""
        raise InputError(
            f"output {self.path} holds arrays; found a list of {type(answers[0]).__name__}, one "
            "per sample. Write to a .jsonl file, or return tensors."
        )

    @abstractmethod
    def _restore(self, record: Record, data: bytes) -> bool:
        """Restore a record from its bytes; return False if it does not fit the earlier ones."""

    @abstractmethod
    def _finish(self, partial: Partial) -> None:
        """Complete the file after all samples are written, and rename it."""

    def _opened(self) -> _OpenFile:
        if self._open is None:
            raise PipeparError(
                f"output {self.path} is not open; expected use inside its context. "
                "Write inside 'with open_output(...) as writer'."
            )
        return self._open

    def _check_positions(self, positions: list[int]) -> None:
        for position, times in Counter(positions).items():
            if not 0 <= position < self.count:
                raise PipeparError(
                    f"output {self.path}: sample {position} is out of range; expected 0 to "
                    f"{self.count - 1}. Open the output with the input's number of samples."
                )
            if times > 1 or position in self.done:
                raise PipeparError(
                    f"output {self.path}: sample {position} arrived twice; expected each sample "
                    "once. Send every row of the input through the pipeline once."
                )

    def _check_values(self, values: Mapping[str, torch.Tensor], count: int) -> None:
        names = self._names or list(values)
        if not values or set(values) != set(names):
            expected = f"{listed(names)} again" if names else "at least one"
            raise InputError(
                f"output {self.path}: found the values {listed(values) or '(none)'}; expected "
                f"{expected}. Let the model return the same values for every micro-batch."
            )
        for name, value in values.items():
            if value.ndim == 0 or value.shape[0] != count:
                raise InputError(
                    f"output {self.path}: {name!r} has shape {tuple(value.shape)}; expected "
                    f"{count} rows along dimension 0, one per sample of the micro-batch. Let the "
                    "model return one row per sample."
                )
        self._names = names

    def _check_answers(self, answers: list[Any], count: int) -> None:
        if len(answers) != count:
            raise InputError(
                f"output {self.path}: found a list of {len(answers)} values for {count} samples; "
                "expected one per sample of the micro-batch. Return one value for each of them."
            )

    def _check_complete(self) -> None:
        if self.done.missing:
            raise PipeparError(
                f"output {self.path}: {self.done.missing} of {self.count} samples never arrived, "
                f"sample {self.done.first_missing} first; expected all of them. The output is "
                "incomplete and was not renamed; run again."
            )


def listed(names: Iterable[str]) -> str:
    """Return names for a message: quoted, separated by commas."""
    return ", ".join(map(repr, names))
