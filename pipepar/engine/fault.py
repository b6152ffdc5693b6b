"""Why a micro-batch has no results, in a job that goes on without.

It travels to the last stage in the place of the micro-batch's values, past stages that then compute
nothing. There its samples are noted, to be tried one by one at the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipepar.errors import PipeparError, StageError
from pipepar.microbatch import Value

FAULT: Final = "#fault"
"""Name, no model's own, of what tells a fault; None where there is none, and absent in a job that
is to stop at the first."""

SOURCE: Final = "source"
SINK: Final = "sink"


@dataclass(frozen=True, slots=True)
class Fault:
    """Where a micro-batch failed, and on what."""

    stage: int | str
    """The stage's number; "source" for reading, "sink" for making rows of the results."""
    error: str
    """In the words of what was raised."""

    @classmethod
    def of(cls, stage: int | str, error: Exception) -> Fault:
        """What was raised there. *Local.*"""
        cause = error.__cause__ if isinstance(error, StageError) else error
        if isinstance(error, PipeparError) and (cause is None or cause is error):
            return cls(stage, str(error))
        return cls(stage, f"{type(cause).__name__}: {cause}")

    def __str__(self) -> str:
        """A few words for the user."""
        where = f"stage {self.stage}" if isinstance(self.stage, int) else f"the {self.stage}"
        return f"in {where}: {self.error}"

    def to_text(self) -> str:
        """A value that can cross between stages. *Local.*"""
        return json.dumps([self.stage, self.error])


def fault_of(values: Mapping[str, Value]) -> Fault | None:
    """Why these values have no results; None where nothing failed so far. *Local.*"""
    text = values.get(FAULT)
    return Fault(*json.loads(text)) if isinstance(text, str) and text else None
