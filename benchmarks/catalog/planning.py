"""Time and memory of planning a model of 70 billion parameters from its configuration alone.

Each repetition is a process `pipepar plan` for a folder that contains config.json only; the kernel
measures the process from its start to its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.shared.benchmark import Benchmark, BenchmarkError, Goal, Option
from benchmarks.shared.report import Row, scaled
from benchmarks.shared.run import Run
from pipepar.plan.plan import Plan

_BF16_BYTES: Final = 2
_SECONDS: Final = Goal("seconds", "at most", 60)
_MEMORY: Final = Goal("peak GiB", "at most", 2)


def measure(run: Run) -> None:
    """Plan several times, and report time and memory."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        write_config(folder, run.options.layers)
        for stages in run.options.stages:
            runs = [plan(folder, stages) for _ in range(run.options.repetitions)]
            seconds, cpu, peak, weights = zip(*runs, strict=True)
            billions = weights[0] / _BF16_BYTES / 1e9
            elapsed, memory = scaled(seconds), scaled(peak, 1 / 2**30)
            rows.append([f"{billions:.1f} billion, {stages}", elapsed, scaled(cpu), memory])
            run.report.goal(_SECONDS, elapsed, f"{stages} stages")
            run.report.goal(_MEMORY, memory, f"{stages} stages")
    columns = ["parameters, stages", "seconds", "CPU seconds", "peak GiB"]
    run.report.table("a plan", columns, rows)


def write_config(folder: Path, layers: int) -> None:
    """Write the configuration of a Llama with the width of the models of 70 billion parameters."""
    from transformers import LlamaConfig

    LlamaConfig(
        hidden_size=8192,
        intermediate_size=22016,
        num_hidden_layers=layers,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
        dtype="bfloat16",
    ).save_pretrained(folder)


def plan(folder: Path, stages: int) -> tuple[float, float, float, int]:
    """Plan in a new process.

    Returns:
        The seconds, the CPU seconds, the peak of resident memory in bytes, and the bytes of the
        model's weights.

    Raises:
        BenchmarkError: the command failed; with its output.
    """
    target = folder.parent / "plan.json"
    command = [*(sys.executable, "-m", "pipepar", "plan"), str(folder), "--stages", str(stages)]
    with tempfile.TemporaryFile("w+") as output:
        begin = time.perf_counter()
        process = subprocess.Popen([*command, "-o", str(target)], stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            raise BenchmarkError(f"{' '.join(command)} failed:\n{output.read()}")
    weights = sum(stage.weight_bytes for stage in Plan.from_json(target.read_text()).stages)
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024.0, weights


BENCHMARK: Final = Benchmark(
    question="how long does a plan take for a model larger than this machine?",
    duration="3 minutes",
    measure=measure,
    options=(
        Option("layers", 100, "layers of the model"),
        Option("stages", (8, 16), "numbers of stages"),
        Option("repetitions", 3, "repetitions for each number of stages"),
    ),
    goals=(_SECONDS, _MEMORY),
)
