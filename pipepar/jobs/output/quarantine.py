"""Samples that failed: those that a job goes on without, and those yet to be tried alone."""

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
    """Why which samples failed.

    Attributes:
        together: samples of micro-batches that failed, which are to be tried alone.
    """

    def __init__(self, output: Path) -> None:
        """Begin with none.

        Args:
            output: the file that the others' results go to.
        """
        self.together = set[int]()
        self._file = errors_of(output)
        self._faults: dict[int, Fault] = {}

    def __len__(self) -> int:
        """Number of samples that failed alone."""
        return len(self._faults)

    def __iter__(self) -> Iterator[int]:
        """Yield the positions of samples that failed alone, in order."""
        return iter(sorted(self._faults))

    @property
    def first(self) -> str:
        """What the first that failed alone failed on, in words."""
        at = min(self._faults)
        return f"sample {at} {self._faults[at]}"

    def add(self, samples: Sequence[int], fault: Fault) -> dict[str, Any]:
        """A micro-batch has failed.

        Args:
            samples: positions in the input.
            fault: what happened.

        Returns:
            A JSON value for `restore`.
        """
        if len(samples) > 1:
            self.together.update(samples)
            return {"together": list(samples)}
        self._faults[samples[0]] = fault
        return {"alone": [[samples[0], *astuple(fault)]]}

    def discard(self, samples: Iterable[int]) -> None:
        """These have results after all."""
        for sample in samples:
            self._faults.pop(sample, None)

    def to_note(self) -> dict[str, Any]:
        """All that failed alone, as a JSON value for `restore`."""
        return {"alone": [[at, *astuple(self._faults[at])] for at in self]}

    def restore(self, note: Mapping[str, Any]) -> None:
        """Take over what an earlier run noted."""
        self.together.update(note.get("together", []))
        self._faults |= {at: Fault(*fields) for at, *fields in note.get("alone", [])}

    def write(self) -> None:
        """Write the file that tells them, a line a sample; without one, remove that of before.

        It is safe against a crash of the host, as the output is, since the journal goes after that.

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
    """The file beside an output that tells which samples failed."""
    return output.with_name(f"{output.name}.errors.jsonl")
