"""The measured timeline of a run, written to a file."""

from __future__ import annotations

import json
from dataclasses import astuple, replace
from pathlib import Path

from pipepar.comm.world import World
from pipepar.trace import Span, Tracer, write_chrome_trace


def write_timeline(world: World, path: Path, tracer: Tracer, begin: float) -> None:
    """Write the spans of all ranks to one file. *Collective.*

    The work of every rank begins at time 0 in the file, since the clocks of ranks differ.

    Args:
        world: all ranks.
        path: the file, which the root writes.
        tracer: the spans of this rank; all recorded work has completed.
        begin: the time when the work of this rank began, on its clock.

    Raises:
        OSError: the file cannot be written; only on the root.
    """
    own = (replace(span, begin=span.begin - begin, end=span.end - begin) for span in tracer.spans)
    texts = world.gather(json.dumps(list(map(astuple, own))), world.root)
    if texts is not None:
        write_chrome_trace(path, [Span(*fields) for text in texts for fields in json.loads(text)])
