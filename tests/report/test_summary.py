"""The record of a run and its printed summary."""

import io
from dataclasses import FrozenInstanceError, replace

import pytest
from rich.console import Console

from pipepar.comm.world import World
from pipepar.host.device_context import DeviceContext
from pipepar.host.run_context import RunContext
from pipepar.plan.placement import Ends, Placement
from pipepar.report.confusion import Confusion
from pipepar.report.gather_record import Findings, gather_record, stage_record
from pipepar.report.run_record import RunRecord, StageRecord
from pipepar.report.summary import print_summary
from pipepar.supervision.stopping import Stopped
from pipepar.trace import Totals
from tests.helpers.jobs.threads import in_threads

KINDS = ("source", "receive", "compute", "send", "sink")


def totals(**seconds: float) -> Totals:
    """Return the totals of ten equal micro-batches."""
    return Totals(10, seconds["all"], seconds["all"] / 10, seconds["all"] / 10, seconds["all"] / 10)


def stage(rank: int, *, threads: int, device: str = "cpu", **kinds: float) -> StageRecord:
    """Return the record of a stage that worked for the given seconds of 20 seconds."""
    return StageRecord(
        rank=rank,
        host=f"node{rank}",
        threads=threads,
        weight_bytes=(rank + 1) * 2**20,
        peak_bytes=(rank + 1) * 2**30,
        totals={kind: totals(all=kinds.get(kind, 0.0)) for kind in KINDS},  # type: ignore[misc]
        gaps=0.0,
        seconds=20.0,
        device=device,
    )


STAGES = (
    stage(0, threads=1, source=2.0, compute=10.0, send=8.0),
    stage(1, threads=4, receive=5.0, compute=15.0),
    stage(2, threads=2, device="cuda", receive=14.0, compute=2.0, sink=4.0),
)


def shown(summary: RunRecord) -> list[str]:
    text = io.StringIO()
    print_summary(summary, Console(file=text, width=200, highlight=False))
    return [" ".join(line.split()) for line in text.getvalue().splitlines()]


def test_the_summary_of_a_run() -> None:
    lines = shown(RunRecord(12345, 20.0, STAGES, predicted=1000.0))
    # The bound: 1 s for one micro-batch on stage 0, 15 s for all on stage 1, 0.2 s on stage 2.
    assert lines[0] == (
        "12,345 samples in 20.0 s, 617.2 samples/s (predicted 1,000.0) · 81% of the perfect "
        "pipeline's speed (bound 16.2 s)"
    )
    assert lines[1] == "stage host computes on weights peak memory busy"
    assert lines[2] == "0 node0 1 thread 1.0 MiB 1.0 GiB 50% " + 10 * "█" + 10 * "░"
    assert lines[3] == "1 node1 4 threads 2.0 MiB 2.0 GiB 75% " + 15 * "█" + 5 * "░"
    assert lines[4] == "2 node2 GPU 3.0 MiB 3.0 GiB 10% " + 2 * "█" + 18 * "░"
    assert lines[5] == "busiest: stage 1 on node1, at work 75% of the time"
    assert lines[6].startswith("idle: fill ")


def test_the_shares_of_idle_time_add_up() -> None:
    summary = RunRecord(100, 20.0, STAGES)
    assert summary.bound == pytest.approx(16.2)
    assert summary.efficiency == pytest.approx(16.2 / 20)
    assert [each.work for each in STAGES] == [12.0, 15.0, 6.0]
    idle = summary.idle
    computed = sum(each.totals["compute"].seconds for each in STAGES) / (3 * 20)
    shares = (idle.fill, idle.imbalance, idle.transfer, idle.source, idle.sink, idle.other)
    assert sum(shares) + computed == pytest.approx(1.0)
    assert min(shares) >= 0


def test_time_after_the_last_record_is_other() -> None:
    """For example, the time to complete the output file."""
    busy = stage(0, threads=1, source=1.0, compute=12.0, sink=3.0)
    summary = RunRecord(10, 20.0, (busy,))
    assert summary.idle.other == pytest.approx(4 / 20)
    assert summary.idle.source == pytest.approx(1 / 20)
    assert summary.idle.sink == pytest.approx(3 / 20)


def test_time_between_records_counts_once() -> None:
    """This rank ran for 20 of 22 s, and paused for 1 s between micro-batches."""
    busy = replace(stage(0, threads=1, compute=16.0), gaps=1.0)
    assert RunRecord(10, 22.0, (busy,)).idle.other == pytest.approx(4 / 22)


def test_the_busiest_stage_has_the_most_work() -> None:
    writes = stage(1, threads=1, compute=8.0, sink=9.0, receive=3.0)
    summary = RunRecord(10, 20.0, (STAGES[0], writes))
    assert summary.busiest is writes
    assert "busiest: stage 1 on node1, at work 85% of the time" in shown(summary)
    assert RunRecord(10, 20.0, (STAGES[0], STAGES[0])).busiest is STAGES[0]


def test_the_summary_without_samples_or_time() -> None:
    lines = shown(RunRecord(0, 0.0, STAGES[:1], predicted=5.0))
    assert lines[0] == (
        "0 samples in 0.0 s, 0.0 samples/s · 0% of the perfect pipeline's speed (bound 10.0 s)"
    )
    assert lines[2].startswith("0 node0 1 thread 1.0 MiB 1.0 GiB 0% ")
    assert not any(line.startswith(("busiest", "idle")) for line in lines)


def test_there_is_no_prediction_without_measurements() -> None:
    assert "predicted" not in shown(RunRecord(5, 1.0, STAGES))[0]


def test_the_summary_has_the_accuracy_if_labels_are_known() -> None:
    confusion = Confusion(("cat", "dog"), ((0, 0, 3), (1, 0, 1)))
    text = " ".join(shown(RunRecord(4, 20.0, STAGES, confusion)))
    assert "accuracy 75.00% of 4 samples in 2 classes" in text
    assert "accuracy" not in " ".join(shown(RunRecord(4, 20.0, STAGES)))


def test_a_record_combines_the_facts_of_all_ranks() -> None:
    """Rank 0 has the samples and the prediction, the last rank has the results."""
    confusion = Confusion(("a", "b"), ((0, 1, 2),))

    def work(world: World) -> RunRecord:
        run = RunContext.begin(world, DeviceContext.on_hosts(world))
        run = replace(run, threads=2 + world.rank)
        for index in range(3):
            run.tracer.record("compute", index, index, index + 0.25 * (1 + world.rank))
        return gather_record(
            world,
            Placement(Ends.of_files(3), (0, 1, 2)),
            stage_record(run, 100 + world.rank, seconds=(4.0, 6.0, 5.0)[world.rank]),
            Findings(
                samples=50 + world.rank,
                confusion=confusion if world.rank == 2 else None,
                predicted=7.0 if world.rank == 0 else None,
                failed=world.rank,
            ),
        )

    first, *others = in_threads(3, work, hosts=["x", "y", "x"])
    assert all(other == first for other in others)
    assert (first.samples, first.seconds, first.failed) == (50, 6.0, 2)
    assert (first.predicted, first.confusion) == (7.0, confusion)
    assert [each.rank for each in first.stages] == [0, 1, 2]
    assert [each.host for each in first.stages] == ["x", "y", "x"]
    assert [each.weight_bytes for each in first.stages] == [100, 101, 102]
    assert [each.threads for each in first.stages] == [2, 3, 4]
    assert [each.seconds for each in first.stages] == [4.0, 6.0, 5.0]
    assert [each.gaps for each in first.stages] == [1.5, 1.0, 0.5]
    assert [each.totals["compute"].seconds for each in first.stages] == [0.75, 1.5, 2.25]
    assert all(each.device == "cpu" for each in first.stages)
    assert all(2**20 < each.peak_bytes < 2**40 for each in first.stages)


def test_a_record_is_a_plain_value() -> None:
    confusion = Confusion(("cat", "dog"), ((0, 0, 3), (1, 0, 1)))
    whole = RunRecord(7, 20.1, STAGES, confusion, 1 / 3, 2, Stopped("SIGTERM", 5, 9))
    for record in (whole, RunRecord(4, 20.0, STAGES), RunRecord(0, 0.0, ())):
        again = RunRecord.from_json(record.to_json())
        assert again == record
        assert again.to_json() == record.to_json()
        assert "\n" not in record.to_json()
    assert shown(RunRecord.from_json(whole.to_json())) == shown(whole)


def test_a_record_is_immutable() -> None:
    record = RunRecord(4, 20.0, STAGES)
    with pytest.raises(FrozenInstanceError):
        record.samples = 5  # type: ignore[misc]
