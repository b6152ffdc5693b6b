"""The timeline of a run, gathered on the root."""

import json
from pathlib import Path

from pipepar.comm.world import World
from pipepar.report.timeline import write_timeline
from pipepar.trace import Tracer
from tests.helpers.jobs.threads import in_threads


def test_the_root_writes_the_spans_of_all_ranks_on_one_clock(tmp_path: Path) -> None:
    def work(world: World) -> None:
        clock = 100.0 * (1 + world.rank)  # each rank has its own clock
        tracer = Tracer(world.rank, keeps_spans=True)
        tracer.record("compute", 3, clock + 1, clock + 1.5 + world.rank)
        write_timeline(world, tmp_path / f"{world.rank}.json", tracer, clock)

    in_threads(3, work)
    (written,) = tmp_path.iterdir()
    assert written.name == "0.json"
    events = json.loads(written.read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert [(each["tid"], each["name"], each["ts"], each["dur"]) for each in spans] == [
        (rank, "compute 3", 1e6, (0.5 + rank) * 1e6) for rank in range(3)
    ]
