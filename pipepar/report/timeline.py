"""The measured timeline of a run, in one file."""

from __future__ import annotations

import json
from dataclasses import astuple, replace
from pathlib import Path

from pipepar.comm.world import World
from pipepar.trace import Span, Tracer, write_chrome_trace


def write_timeline(world: World, path: Path, tracer: Tracer, begin: float) -> None:
    """Write the spans of all ranks; the clocks are aligned where the work began. *Collective.*

    Args:
        world: all ranks.
        path: the file, on the rank that reports.
        tracer: this stage's times; all that was recorded has come to pass.
        begin: when this rank's work began, on its clock.

    Raises:
        OSError: the file system refuses.
    """
    own = (replace(span, begin=span.begin - begin, end=span.end - begin) for span in tracer.spans)
    texts = world.gather(json.dumps(list(map(astuple, own))), world.root)
    if texts is not None:
        write_chrome_trace(path, [Span(*fields) for text in texts for fields in json.loads(text)])
