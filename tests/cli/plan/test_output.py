"""The output of `pipepar plan`."""

import fcntl
import io
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Timer

import pytest
import torch
from rich.console import Console
from rich.text import Text
from torch import nn

from pipepar.cli.show_plan import print_prediction, print_shares
from pipepar.plan.costs import DeviceCost, LinkCost
from pipepar.plan.hardware import Cluster
from pipepar.planner.choice import Choice
from pipepar.planner.plan_offline import plan_model
from pipepar.planner.plan_request import PlanRequest
from pipepar.planner.prediction import StagePrediction
from tests.helpers.cluster.mpirun import environment, mpirun
from tests.helpers.jobs.command import MLP, pipepar
from tests.helpers.models import Skips

pytestmark = pytest.mark.long(30)

GIB = 2.0**30
EPYC = "AMD EPYC 9555 64-Core Processor, 1 thread"
H100 = "NVIDIA H100 80GB HBM3, 1 thread"


def chosen(
    *devices: DeviceCost,
    request: PlanRequest | None = None,
    link: LinkCost | None = None,
    width: int = 4,
) -> Choice:
    """Plan eight equal layers for these devices."""
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(8))).eval()
    kinds = {frozenset((one.kind, other.kind)) for one in devices for other in devices}
    described = Cluster(devices, dict.fromkeys(kinds, link or LinkCost()))
    planning = plan_model(
        model, (torch.zeros(2, width),), {}, None, described, request or PlanRequest()
    )
    assert planning.choice is not None
    return planning.choice


def shown(choice: Choice, measured: bool = True) -> list[str]:
    text = io.StringIO()
    print_prediction(choice, Console(width=80, file=text, highlight=False), measured=measured)
    return text.getvalue().splitlines()


def devices(speeds: Sequence[float], kinds: Sequence[str]) -> list[DeviceCost]:
    return [
        DeviceCost(1e6 * speed, 80 * GIB, kind) for speed, kind in zip(speeds, kinds, strict=True)
    ]


def test_a_single_kind_of_device_is_printed_once() -> None:
    lines = shown(chosen(*devices([1.0, 1.0], [EPYC, EPYC])))
    assert lines[0] == f"device: {EPYC}"
    assert "EPYC" not in "".join(lines[1:])
    assert lines[1].split() == [
        *("stage", "operations", "weights", "memory", "compute", "transfer", "balance")
    ]
    assert [line.split()[:2] for line in lines[2:4]] == [["0", "0-3"], ["1", "4-7"]]
    assert lines[2].endswith("100% " + 17 * "█")
    assert lines[-1] == "Times are measured."


def test_long_device_names_are_replaced_by_letters() -> None:
    lines = shown(chosen(*devices([1.0, 1.0, 1.0], [EPYC, H100, EPYC])))
    assert lines[:2] == [f"a = {EPYC}", f"b = {H100}"]
    assert [line.split()[4] for line in lines[3:6]] == ["a", "b", "a"]


def test_short_device_names_are_not_replaced() -> None:
    lines = shown(chosen(*devices([1.0, 2.0], ["[gpu]", "cpu"])), measured=False)
    assert [line.split()[4] for line in lines[1:3]] == ["[gpu]", "cpu"]
    assert lines[-1] == "Times are from operation counts and the cluster file."


@pytest.mark.parametrize(("slower", "shows"), [(0.96, False), (0.9, True)])
def test_the_pace_is_shown_if_speeds_differ(slower: float, shows: bool) -> None:
    pair = [DeviceCost(speed, GIB, EPYC) for speed in (1.0, slower)]
    lines = shown(chosen(*pair))
    assert ("pace: speed relative to the usual speed of such a device" in lines) == shows
    assert lines[2].split()[4:5] == (["1.00"] if shows else ["1"])
    assert lines[3].split()[4:5] == (["0.90"] if shows else ["1"])
    assert "pace" not in " ".join(shown(chosen(*pair), measured=False))


def test_the_table_fits_80_columns() -> None:
    choice = chosen(*(DeviceCost(speed, GIB, kind) for speed, kind in ((1.0, EPYC), (0.5, H100))))
    widest = StagePrediction(DeviceCost(1.0, 80 * GIB, EPYC), GIB - 1, 0.9999, 0.9999)
    slower = replace(widest, device=DeviceCost(0.5, 80 * GIB, H100))
    plan = replace(
        choice.plan,
        stages=tuple(replace(stage, weight_bytes=999 * 2**20) for stage in choice.plan.stages),
    )
    prediction = replace(choice.prediction, stages=(widest, slower))
    lines = shown(replace(choice, plan=plan, prediction=prediction))
    assert (
        lines[2]
        == "stage operations   weights on pace              memory  compute transfer balance"
    )
    assert lines[3].startswith("    0        0-4 999.0 MiB  a 1.00 1,024 of 81,920 MiB 999.9 ms")
    assert max(map(len, lines[:5])) <= 80


@pytest.mark.parametrize(
    ("taken", "whole", "expected"),
    [
        (1.0, GIB, "1 of 1,024 MiB"),
        (17.2 * 2**20, 11e9, "18 of 10,490 MiB"),
        (38.2 * GIB, 80 * GIB, "38.2 of 80.0 GiB"),
    ],
)
def test_memory_in_one_unit(taken: float, whole: float, expected: str) -> None:
    choice = chosen(DeviceCost(1.0, GIB, "cpu"))
    (stage,) = choice.prediction.stages
    stage = replace(stage, device=DeviceCost(1.0, whole, "cpu"), memory=taken)
    prediction = replace(choice.prediction, stages=(stage,))
    assert f" {expected} " in shown(replace(choice, prediction=prediction))[2]


def test_skips_are_printed_below_the_table() -> None:
    choice = chosen(*devices([1.0, 1.0], ["cpu", "cpu"]))
    assert "skips" not in " ".join(shown(choice))
    planning = plan_model(Skips().eval(), (torch.zeros(2, 3, 16, 16),), {}, 3)
    assert planning.plan is not None
    text = io.StringIO()
    print_shares(planning.plan, Console(width=80, file=text))
    names = ", ".join(planning.plan.edges[0, 2])
    assert f"skips: {names} from stage 0 to stage 2" in " ".join(text.getvalue().split())


def test_more_micro_batches_than_the_simulation_computes() -> None:
    prediction = chosen(
        *devices([1.0, 1.0], ["cpu", "cpu"]), request=PlanRequest(1000, 1)
    ).prediction
    each = prediction.stages[0].compute
    assert prediction.bound == pytest.approx(1001 * each)
    assert prediction.efficiency == pytest.approx(1.0)
    lines = shown(chosen(*devices([1.0, 1.0], ["cpu", "cpu"]), request=PlanRequest(1000, 1)))
    assert any(
        line.startswith("1,000 samples, 1,000 micro-batches of 1, depth 2") for line in lines
    )


def test_the_number_of_samples_is_that_of_the_input(rows: Path, cluster: Path) -> None:
    status, output = pipepar("plan", MLP, "--input", rows, "--cluster", cluster)
    assert status == 0, output
    assert " 11 samples, 1 micro-batch of 11, depth 2: " in output
    options = ("--input", rows, "--micro-batch", 4)
    for how in (("--cluster", cluster), ("--stages", 2, "--profile")):
        status, output = pipepar("plan", MLP, *options, *how)
        assert status == 0, output
        assert " 11 samples, 3 micro-batches of 4, depth 2: " in output
    status, output = pipepar("plan", MLP, "--shape", "2x4", "--cluster", cluster)
    assert " speed 64 micro-batches of 32, depth 2: " in output


def on_terminal(columns: int, words: Sequence[str]) -> list[str]:
    """Return the lines that a command writes to a terminal, without colours."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    started = subprocess.Popen(
        words, env=environment(), stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    limit = Timer(90, started.kill)
    limit.start()
    written = b""
    try:
        while part := os.read(ours, 4096):
            written += part
    except OSError:  # Linux reports the end of a pseudo-terminal as an error
        pass
    finally:
        os.close(ours)
        status = started.wait()
        limit.cancel()
    assert status == 0, written
    return Text.from_ansi(written.decode().replace("\r", "")).plain.splitlines()


def test_ranks_use_the_width_of_the_launchers_terminal(rows: Path) -> None:
    command = ["-m", "pipepar", "plan", MLP, "--input", str(rows)]
    lines = on_terminal(120, [*mpirun(2), sys.executable, *command])
    (header,) = (at for at, line in enumerate(lines) if line.startswith("stage operations"))
    assert lines[header].split()[-4:] == ["memory", "compute", "transfer", "balance"]
    assert [line.split()[0] for line in lines[header + 1 : header + 3]] == ["0", "1"]
    # In the default of 80 columns, the bar would be shorter.
    assert any(line.endswith("100% " + 20 * "█") for line in lines), "\n".join(lines)
    assert max(map(len, lines)) <= 120
