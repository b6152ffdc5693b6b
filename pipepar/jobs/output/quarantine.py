"""The samples that failed: alone, or with their micro-batch and yet to be tried alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple
from io import FileIO
from pathlib import Path
from typing import Any

from pipepar.data.writers.partial import partial_of, rename_synced, write_at
from pipepar.microbatch import Fault


class Quarantine:
    """The samples that failed alone, with their errors, and those that failed with others.

    A micro-batch of one sample fails alone. Length and iteration cover the samples that failed
    alone.

    Attributes:
        failed_together: samples of failed micro-batches, including those that have since been tried
            alone.
    """

    def __init__(self, output: Path) -> None:
        """Start without failed samples.

        Args:
            output: the output file of the job.
        """
        self.failed_together = set[int]()
        self._file = errors_of(output)
        self._faults: dict[int, Fault] = {}

    def __len__(self) -> int:
        """Number of samples that failed alone."""
        return len(self._faults)

    def __iter__(self) -> Iterator[int]:
        """Yield the positions of the samples that failed alone, in order."""
        return iter(sorted(self._faults))

    @property
    def first(self) -> str:
        """A phrase with the first sample that failed alone and its error; there must be one."""
        at = min(self._faults)
        return f"sample {at} {self._faults[at]}"

    def add(self, samples: Sequence[int], fault: Fault) -> dict[str, Any]:
        """Add the samples of a micro-batch that failed.

        Args:
            samples: positions in the input.
            fault: the error; stored only if the micro-batch has one sample.

        Returns:
            A JSON value for `restore`.
        """
        if len(samples) > 1:
            self.failed_together.update(samples)
            return {"together": list(samples)}
        self._faults[samples[0]] = fault
        return {"alone": [[samples[0], *astuple(fault)]]}

    def discard(self, samples: Iterable[int]) -> None:
        """Remove samples from those that failed alone, since they have results."""
        for sample in samples:
            self._faults.pop(sample, None)

    def to_note(self) -> dict[str, Any]:
        """Return the samples that failed alone as a JSON value for `restore`."""
        return {"alone": [[at, *astuple(self._faults[at])] for at in self]}

    def restore(self, note: Mapping[str, Any]) -> None:
        """Add the samples of a note that `add` or `to_note` returned in an earlier run."""
        self.failed_together.update(note.get("together", []))
        self._faults |= {at: Fault(*fields) for at, *fields in note.get("alone", [])}

    def write(self) -> None:
        """Write the errors of the samples that failed alone, a line per sample.

        Without such samples, remove the file of an earlier run. The file is synced as the output
        is, since the journal, which also has the errors, is removed afterwards.

        Raises:
            OSError: the file system refuses.
        """
        if not self._faults:
            self._file.unlink(missing_ok=True)
            return
        lines = [json.dumps({"id": at, **asdict(self._faults[at])}) for at in self]
        hidden = partial_of(self._file)
        with FileIO(hidden, "w") as file:
            write_at(file, "\n".join([*lines, ""]).encode(), 0)
            rename_synced(file, hidden, self._file)


def errors_of(output: Path) -> Path:
    """Return the path of the file of errors of an output."""
    return output.with_name(f"{output.name}.errors.jsonl")
