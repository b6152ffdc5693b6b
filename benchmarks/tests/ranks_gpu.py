"""The GPU benchmark on GPUs that are not there: it runs, and says what it cannot know."""

import json

import pytest

from benchmarks import gpu
from benchmarks.gpu import measure_on, parsed
from benchmarks.gpu_sides import enqueued
from benchmarks.report import Report
from pipepar.comm.gpu import communicators
from pipepar.comm.gpu.nccl import Nccl
from pipepar.comm.world import World
from tests.helpers.gpu.standin import CommunicatorsOverMpi, context_for

pytestmark = pytest.mark.mpi

SMALL = "--rows 8 --width 16 --layers 2 --microbatches 6 --repetitions 2".split()


def test_it_measures_on_every_rank(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hops = 4
    if world.size == 1:  # which measures NCCL itself, and promises nothing of it
        hops = 0
        monkeypatch.setattr(gpu, "enqueued_to_itself", lambda *_: [[1e-6], [2e-6]])
        monkeypatch.setattr(Nccl, "load", lambda: None)
    monkeypatch.setattr(communicators, "Communicators", CommunicatorsOverMpi)
    report = Report("gpu") if world.rank == 0 else None
    goals = measure_on(world, context_for(world, ["cuda"]), parsed(SMALL), report)
    told = capfd.readouterr().out
    # No profiler sees a stand-in's calls: no goal then, rather than one that is met.
    assert [goal.what.split(" ")[0] for goal in goals] == ["us"] * hops + ["in"]
    assert all(goal.measured.median > 0 for goal in goals)
    if world.rank == 0:
        hop = "take the next" if hops else "a send to itself and its receive"
        for words in (f"{hop}, 1048576 B", f"stage {world.size - 1}", "(b) is not known"):
            assert words in told


def test_bursts_of_both_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    if world.size == 1:
        pytest.skip("one rank has nobody to send to")
    monkeypatch.setattr(communicators, "Communicators", CommunicatorsOverMpi)
    own = context_for(world, ["cuda"]).gpu
    assert own is not None
    found = enqueued(world, own, 64, 3)
    lengths = [json.loads(text) for text in world.all_gather(json.dumps(list(map(len, found))))]
    assert lengths == [[8, 8, 8]] * 2 + [[]] * (world.size - 2)
