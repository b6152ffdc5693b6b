"""`pipepar doctor` in one process, under mpirun, and with a rank that fails."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipepar.comm.world import World
from pipepar.doctor import examine as doctor
from pipepar.doctor import inspect_rank as preflight
from pipepar.doctor.facts import RankFacts
from pipepar.doctor.inspect_rank import inspect_rank, with_devices
from pipepar.format import named
from pipepar.host.gpus import VisibleGpu
from pipepar.supervision.failure import FailTogether
from tests.helpers.cluster.mpirun import Finished, finish, mpirun, start
from tests.helpers.jobs.command import pipepar
from tests.helpers.jobs.threads import Aborted, in_threads

pytestmark = pytest.mark.long(30)

# The doctor with one function replaced on rank 1, by a line of Python.
MODIFIED = """
import time
from pipepar.cli import doctor as command
from pipepar.comm.group.launcher import launcher_rank
from pipepar.doctor import examine as doctor
from pipepar.host import link_speed as links

def hang(*args):
    time.sleep(60)

def fail(*args):
    raise OSError("the disk is gone")

command._PATIENCE, doctor._FACTS_TIMEOUT = {}, 1.0
if launcher_rank() == 1:
    {}
else:
    links._TIMEOUT = 2.0

from pipepar.cli.app import main
main()
"""


def ranks(count: int, *options: str, before: tuple[str, ...] = ()) -> Finished:
    command = [*before, *mpirun(count), sys.executable, "-m", "pipepar", "doctor", *options]
    return finish(start(command), 90)


def document(ended: Finished) -> dict[str, Any]:
    """Return the output of --json; a launcher may print more if a job ends with status 1."""
    found, _ = json.JSONDecoder().raw_decode(ended.output[ended.output.index("{") :])
    assert isinstance(found, dict)
    return found


def modified(line: str, start_timeout: float = 60.0) -> Finished:
    """Run the doctor on two ranks, with a line of Python on rank 1.

    Args:
        line: the statement.
        start_timeout: seconds that the start of all ranks may take.
    """
    command = [*mpirun(2), sys.executable, "-c", MODIFIED.format(start_timeout, line), "doctor"]
    return finish(start(command), 90)


def test_facts_survive_a_json_round_trip() -> None:
    facts = inspect_rank(World.start())
    assert RankFacts.from_json(facts.to_json()) == facts
    assert facts.threads == torch.get_num_threads()
    assert facts.versions["torch"] == torch.__version__
    assert facts.memory > 0
    assert facts.allotted >= len(facts.cores) > 0


def test_facts_of_an_older_version_can_be_read() -> None:
    facts = json.loads(inspect_rank(World.start()).to_json())
    for name in ("gpus", "local_rank", "device", "gpu"):
        del facts[name]
    assert RankFacts.from_json(json.dumps(facts)).device == ""


def test_the_facts_contain_each_gpu_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [VisibleGpu(index, f"u{index}", "some GPU", 80 * 2**30, frozenset()) for index in (0, 1)]
    monkeypatch.setattr(preflight, "visible_gpus", lambda: seen)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1")
    facts = inspect_rank(World.start())
    assert facts.devices == ["some GPU (80.0 GiB)"] * 2
    assert (facts.gpus, facts.local_rank) == (["u0", "u1"], 1)
    assert with_devices([facts])[0].device == "cuda:0 some GPU (80.0 GiB)"


def test_inspecting_a_rank_does_not_initialise_cuda_without_a_gpu() -> None:
    facts = inspect_rank(World.start())
    assert bool(facts.devices) == torch.cuda.is_available()
    if not facts.devices:
        assert not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


def test_a_read_only_directory_has_no_free_space(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(Path.cwd()))
    spaces = {space.use: space.free for space in inspect_rank(World.start()).spaces}
    assert spaces["working directory"] == 0
    assert spaces["temporary files"] > 0


def test_the_share_from_slurm_limits_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World.start()
    whole = inspect_rank(world)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", str(len(world.cores[0])))
    assert inspect_rank(world).allotted <= whole.allotted
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "9999")
    assert inspect_rank(world).allotted == whole.allotted


def test_a_single_process_has_no_problems() -> None:
    status, output = pipepar("doctor")
    assert status == 0, output
    assert "1 rank on 1 host" in output
    assert "mpirun -n 4 pipepar doctor" in output
    assert "no problems" in output


def test_the_json_of_a_single_process() -> None:
    status, output = pipepar("doctor", "--json")
    found = json.loads(output)
    assert status == 0
    assert found["status"] in ("ok", "warning")
    assert [facts["rank"] for facts in found["ranks"]] == [0]
    if not torch.cuda.is_available():
        assert found["ranks"][0]["device"] == "cpu"
    assert found["links"] == []


def test_a_problem_in_one_process_ends_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    status, output = pipepar("doctor")
    assert status == 1
    assert "problem" in output


def test_a_process_that_cannot_inspect_its_host_reports_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(path: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "statvfs", gone)
    status, output = pipepar("doctor")
    assert status == 1
    assert "the disk is gone" in output


def test_help_has_an_example() -> None:
    status, output = pipepar("doctor", "--help")
    assert status == 0
    assert "mpirun -n 4 pipepar doctor" in output


@pytest.mark.parametrize("count", [1, 3])
def test_links_are_measured(count: int) -> None:
    ended = ranks(count, "--json")
    found = document(ended)
    assert ended.status == int(found["status"] == "problem"), ended.output
    assert ended.output.count('"findings"') == 1  # only rank 0 prints
    assert [facts["rank"] for facts in found["ranks"]] == list(range(count))
    assert [(k["first"], k["second"]) for k in found["links"]] == [
        (rank, rank + 1) for rank in range(count - 1)
    ]
    for link in found["links"]:
        assert 0 < link["latency"] < 1
        assert link["bandwidth"] > 1e6
        assert abs(link["skew"]) <= link["uncertainty"] + 1e-3  # one host has one clock
    assert all("THREAD_MULTIPLE" in facts["thread_level"] for facts in found["ranks"])


@pytest.mark.skipif(shutil.which("taskset") is None, reason="no taskset")
def test_ranks_on_one_core_are_a_problem() -> None:
    """The table fits 100 columns, and has no colours in a file."""
    core = str(min(os.sched_getaffinity(0)))
    ended = ranks(2, before=("taskset", "--cpu-list", core))
    assert ended.status == 1
    assert "MPI_ABORT" not in ended.output.upper()
    lines = ended.output.splitlines()
    problems = [line.split()[1] for line in lines if line.startswith("problem")]
    assert problems == ["cores"], ended.output
    assert "ranks 0-1 share 1 core" in ended.output
    assert "2 ranks on 1 host" in ended.output
    assert "\x1b" not in ended.output
    assert max(map(len, lines[: lines.index(next(filter(is_total, lines))) + 1])) <= 100
    assert sum("0 - 1" in line for line in lines) == 1


def is_total(line: str) -> bool:
    return line.startswith("1 problem, ")


def test_a_rank_that_cannot_inspect_its_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing_on_rank_1(world: World) -> RankFacts:
        if world.rank == 1:
            raise OSError("the disk is gone")
        return inspect_rank(world)

    def work(world: World) -> None:
        with FailTogether(world):
            doctor.examine(world)

    monkeypatch.setattr("pipepar.doctor.examine.inspect_rank", failing_on_rank_1)
    with pytest.raises(Aborted) as ended:
        in_threads(2, work)
    assert "### pipepar: rank 1 of 2" in str(ended.value)
    assert "the disk is gone" in str(ended.value)


@pytest.mark.full
def test_a_rank_that_cannot_inspect_its_host_ends_all_processes() -> None:
    ended = modified("doctor.inspect_rank = fail")
    assert ended.status == 1
    assert "### pipepar: rank 1 of 2" in ended.output, ended.output
    assert "the disk is gone" in ended.output


def test_links_between_threads_are_measured() -> None:
    checkup, *others = in_threads(3, doctor.examine, hosts=["a", "a", "b"])
    assert all(other == checkup for other in others)
    assert [(link.first, link.second) for link in checkup.links] == [(0, 1), (1, 2)]
    for link in checkup.links:
        assert 0 < link.latency < 1
        assert link.bandwidth > 1e6
        assert abs(link.skew) <= link.uncertainty + 1e-3
    assert [facts.rank for facts in checkup.ranks] == [0, 1, 2]


def test_a_rank_that_hangs_is_named() -> None:
    ended = modified("doctor.inspect_rank = hang")
    assert ended.status == 1
    assert "error: rank 1 on" in ended.output, ended.output
    assert "cannot inspect its host" in ended.output


def test_a_rank_that_does_not_start_ends_the_job() -> None:
    ended = modified("time.sleep(60)", start_timeout=3.0)
    assert ended.status == 1
    assert "_wait_for_every_rank_to_start" in ended.output, ended.output


def test_a_neighbour_that_does_not_respond_is_named() -> None:
    ended = modified("links._answer = hang")
    assert ended.status == 1
    assert "error: rank 0 on" in ended.output, ended.output
    assert "with rank 1 on" in ended.output


def test_ranks_are_named_in_ranges() -> None:
    assert named([3]) == "rank 3"
    assert named([0, 1, 2, 5, 7, 8]) == "ranks 0-2, 5, 7-8"
