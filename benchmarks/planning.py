"""What planning takes: a language model of 70 billion parameters, from its configuration alone.

    python -m benchmarks.planning [--layers L] [--stages S] [--repetitions R]

Each repetition is a process of its own, `pipepar plan` on a folder that holds config.json and
nothing else, measured by the kernel from its start to its end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.report import Figure, Goal, Report, scaled
from pipepar.plan.plan import Plan

_SECONDS: Final = 60
_GIBIBYTES: Final = 2
_BF16_BYTES: Final = 2


def write_config(folder: Path, layers: int) -> None:
    """A Llama as wide as its models of 70 billion parameters."""
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
    """Plan in a process of its own.

    Returns:
        Seconds; seconds of CPU; peak of resident memory, in bytes; the weights' bytes.

    Raises:
        RuntimeError: it failed; its output.
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
            raise RuntimeError(f"{' '.join(command)} failed:\n{output.read()}")
    made = Plan.from_json(target.read_text())
    weights = sum(stage.weight_bytes for stage in made.stages)
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024.0, weights


def main() -> int:
    """Plan again and again, and print what it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=100, help="of the model [100]")
    parser.add_argument("--stages", type=int, nargs="+", default=[8, 16], help="[8 16]")
    parser.add_argument("--repetitions", type=int, default=3, help="for each [3]")
    options = parser.parse_args()
    report = Report("planning: a Llama of 70 billion parameters from config.json alone", ranks=1)
    rows: list[list[str | Figure]] = []
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        write_config(folder, options.layers)
        for stages in options.stages:
            runs = [plan(folder, stages) for _ in range(options.repetitions)]
            seconds, cpu, peak, weights = zip(*runs, strict=True)
            billions = weights[0] / _BF16_BYTES / 1e9
            memory = scaled(peak, 1 / 2**30)
            rows.append([f"{billions:.1f} billion, {stages}", Figure(seconds), Figure(cpu), memory])
            goals.append(Goal(f"{stages} stages: seconds", "at most", _SECONDS, Figure(seconds)))
            goals.append(Goal(f"{stages} stages: peak GiB", "at most", _GIBIBYTES, memory))
    report.table("a plan", ["parameters, stages", "seconds", "CPU seconds", "peak GiB"], rows)
    report.goals(goals)
    return 0


if __name__ == "__main__":
    sys.exit(main())
