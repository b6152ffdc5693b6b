"""The GPU benchmark on simulated GPUs: it completes, and reports which figures are unknown."""

import json
from argparse import Namespace

import pytest

from benchmarks.catalog.gpu import benchmark
from benchmarks.catalog.gpu.benchmark import measure_on, report_figures
from benchmarks.catalog.gpu.hops import enqueued
from benchmarks.shared.report import Report
from pipepar.comm.gpu import communicators
from pipepar.comm.gpu.nccl import Nccl
from pipepar.comm.world import World
from tests.helpers.gpu.standin import CommunicatorsOverMpi, context_for

pytestmark = pytest.mark.mpi

SMALL = Namespace(rows=8, width=16, layers=2, microbatches=6, repetitions=2)


def test_it_measures_on_every_rank(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hops = 4
    if world.size == 1:  # then it measures NCCL alone, without goals
        hops = 0
        monkeypatch.setattr(benchmark, "enqueued_to_itself", lambda *_: [[1e-6], [2e-6]])
        monkeypatch.setattr(Nccl, "load", lambda: None)
    monkeypatch.setattr(communicators, "Communicators", CommunicatorsOverMpi)
    found = measure_on(world, context_for(world, ["cuda"]), SMALL)
    if world.rank == 0:
        shown = Report("gpu")
        report_figures(shown, found, shared=False)
        shown.close()
        output = capfd.readouterr().out
        goals = [line for line in output.splitlines() if line.startswith("goal: ")]
        # The profiler does not record the calls of a simulated GPU: there is no goal for waits.
        assert [goal.split()[1] for goal in goals] == ["us"] * hops + ["in"]
        assert all(seconds > 0 for turn in found["stages"][0] for seconds in turn)
        assert all(seconds > 0 for size in found["hops"][0] for seconds in size)
        hop = "receive" if hops else "a send to itself and its receive"
        for words in (f"{hop}, 1048576 B", f"stage {world.size - 1}", "(b) is not known"):
            assert words in output


def test_bursts_of_both_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    if world.size == 1:
        pytest.skip("needs two ranks")
    monkeypatch.setattr(communicators, "Communicators", CommunicatorsOverMpi)
    own = context_for(world, ["cuda"]).gpu
    assert own is not None
    found = enqueued(world, own, 64, 3)
    lengths = [json.loads(text) for text in world.all_gather(json.dumps(list(map(len, found))))]
    assert lengths == [[8, 8, 8]] * 2 + [[]] * (world.size - 2)
