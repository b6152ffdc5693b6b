"""What every output file has in common: each sample once, checked, complete or nothing."""

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
from pipepar.data.writers.journal import Journal, Record, Trail, journal_of
from pipepar.data.writers.partial import Partial, naming
from pipepar.data.writers.unfinished import Resumable, Unfinished
from pipepar.errors import InputError, PipeparError

# Samples that are left blank at a time: there may be many, with long rows.
_PIECE: Final = 64


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """The partial file of a writer whose context is entered."""

    partial: Partial
    """The file; renamed when it is complete."""
    trail: Trail
    """What has been written to it since the last record."""
    journal: Journal | None
    """None for an output that cannot be resumed, or that an earlier run renamed already."""
    renamed: bool
    """Whether an earlier run has renamed it, so that only its journal is left to be removed."""


class RowWriter(ABC):
    """Writes one output file; ``open_output`` makes one."""

    def __init__(self, path: Path, count: int, resumable: Resumable | None = None) -> None:
        """Take note of the file; nothing is written before the context is entered.

        Args:
            path: the output file.
            count: number of samples.
            resumable: what it takes to be resumed; without, no journal is kept.
        """
        self.path = path
        self.count = count
        self.done = SampleSet(count)
        """What has been written, by an earlier run too."""
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
            samples: int64 [B], positions in the user's input, 0-based, in any order.
            values: the model's outputs by name, each [B, ...] on any device, the same names in
                every call; or a list of one JSON value a sample, for a format that can hold it.
            note: a JSON value, for `Resumable.taken` when the job is resumed.

        Raises:
            InputError: a value has not one row a sample, or does not fit the file's format.
            PipeparError: a sample is out of range or was written before, or the writer's context
                is not entered.
            OSError: the file system refuses (a full disk, for example); it names the file.
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
        with naming(self.path):
            if isinstance(values, list):
                layout = self._store_answers(file.trail, positions, values)
            else:
                rows = {name: value.detach().cpu() for name, value in values.items()}
                layout = self._store(file.trail, positions, rows)
            record = file.trail.record(positions, layout, note)
            if file.journal is not None:
                file.journal.add(record)
        self.done.add(positions)

    def note(self, note: Any) -> None:
        """Keep what is to be known of samples without rows, for `Resumable.taken`.

        Args:
            note: a JSON value.

        Raises:
            OSError: the file system refuses.
        """
        journal = self._opened().journal
        if journal is not None:
            with naming(self.path):
                journal.add(Record((), (), 0, None, note))

    def leave_blank(self, samples: torch.Tensor, note: Any = None) -> None:
        """Write rows that say nothing: null in JSON, NaN among floats, elsewhere zeros.

        Args:
            samples: int64 [B], as for `write`.
            note: as for `write`, of all of them.

        Raises:
            InputError: no row has been written yet, so the form of a row is unknown.
            PipeparError: as for `write`.
            OSError: as for `write`.
        """
        for begin in range(0, len(samples), _PIECE):
            piece = samples[begin : begin + _PIECE]
            self.write(piece, self._blank(len(piece)), None if begin else note)

    def suspend(self) -> None:
        """Have the output left to be resumed, not finished, when the context is left."""
        self._suspended = True

    def __enter__(self) -> RowWriter:
        """Open the hidden partial file, and take over what holds of an earlier run's."""
        with naming(self.path):
            partial = self._resumable.partial if self._resumable else Partial(self.path)
            try:
                self._open = self._begin(partial, self._resumable)
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
        """Put the complete file under its name; after an exception keep what can be resumed."""
        file, self._open = self._opened(), None
        partial, journal = file.partial, file.journal
        finished = False
        try:
            with naming(self.path):
                if journal is not None:
                    journal.end()
                if error is None and not self._suspended:
                    self._check_complete()
                    if not file.renamed:
                        self._finish(partial)
                    finished = True
        finally:
            # Notes alone are not worth going on with.
            worth = journal is not None and journal.holds_any and len(self.done) > 0
            if finished:
                journal_of(self.path).unlink(missing_ok=True)
                partial.discard()
            elif worth or file.renamed:
                partial.keep()
            else:
                self._discard(partial)

    def _begin(self, partial: Partial, resumable: Resumable | None) -> _OpenFile:
        """Continue what an earlier run left, or begin anew."""
        left = resumable.usable(self.count) if resumable else None
        if left is None:
            # The journal first: it would name what is not there.
            journal_of(self.path).unlink(missing_ok=True)
            partial.clear()
        records = self._taken(left, resumable.taken) if left and resumable else iter(())
        renamed = left is not None and left.renamed
        journal = None
        if renamed:
            deque(records, 0)  # its journal needs no more lines
            self._check_complete()
        elif resumable:
            journal = Journal(partial, resumable.header, records)
        # After `clear`, which opens another file.
        return _OpenFile(partial, Trail(partial.file), journal, renamed)

    def _taken(self, left: Unfinished, taken: Callable[[list[int], Any], None]) -> Iterator[Record]:
        """Take over the records of an earlier run that hold, each sample of them once."""
        for record, data in left.sound():
            samples = record.samples
            fits = all(0 <= at < self.count and at not in self.done for at in samples)
            if fits and (not samples or self._restore(record, data)):
                self.done.add(samples)
                taken(samples, record.note)
                yield record

    def _discard(self, partial: Partial) -> None:
        """Remove the hidden files, unless they are another run's by now."""
        if partial.is_own:
            journal_of(self.path).unlink(missing_ok=True)
        partial.discard()

    @abstractmethod
    def _blank(self, count: int) -> Mapping[str, torch.Tensor] | list[Any]:
        """Return so many rows that say nothing."""

    @abstractmethod
    def _store(self, trail: Trail, positions: list[int], rows: dict[str, torch.Tensor]) -> Any:
        """Keep rows, whose positions and number are checked, and return `Record.layout`."""

    def _store_answers(self, trail: Trail, positions: list[int], answers: list[Any]) -> Any:
        """Keep one JSON value a sample; most formats hold arrays alone."""
        raise InputError(
            f"output {self.path} holds arrays; found a list of {type(answers[0]).__name__}, one a "
            "sample. Write to a .jsonl file, or return tensors."
        )

    @abstractmethod
    def _restore(self, record: Record, data: bytes) -> bool:
        """Take over what an earlier run stored, as bytes; return whether it can be."""

    @abstractmethod
    def _finish(self, partial: Partial) -> None:
        """Put the file under its name, complete, all samples being stored."""

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
                    f"{count} rows along dimension 0, one a sample of the micro-batch. Let the "
                    "model return one row a sample."
                )
        self._names = names

    def _check_answers(self, answers: list[Any], count: int) -> None:
        if len(answers) != count:
            raise InputError(
                f"output {self.path}: found a list of {len(answers)} values for {count} samples; "
                "expected one a sample of the micro-batch. Return one value for each of them."
            )

    def _check_complete(self) -> None:
        if self.done.missing:
            raise PipeparError(
                f"output {self.path}: {self.done.missing} of {self.count} samples never arrived, "
                f"sample {self.done.first_missing} first; expected all of them. Nothing was put "
                "under this name; run again."
            )


def listed(names: Iterable[str]) -> str:
    """Return names as a message shows them: quoted, with commas between."""
    return ", ".join(map(repr, names))
