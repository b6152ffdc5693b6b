"""Memory, bytes read and time of loading a model.

Four ranks load a Llama of about 2 GiB in float32, two layers each. Memory is compared with the same
four processes loading the same model 16 times narrower, and with four processes that import and
connect everything and load no model. The loading of one stage is timed in separate processes, in
turn with the safetensors library reading the same tensors.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeAlias

import torch
from safetensors import safe_open

from benchmarks.shared.benchmark import Benchmark, Goal, Option
from benchmarks.shared.report import Figure, Report, Row, ratio, scaled
from benchmarks.shared.run import Run
from pipepar.comm.world import World
from pipepar.engine.stage import Stage, weights_of
from pipepar.model.capture.capture import capture
from pipepar.model.source.open_source import from_huggingface
from pipepar.pipeline import Pipeline
from pipepar.planner.plan_offline import make_plan
from pipepar.tasks.registry import find_task

_RANKS: Final = 4
_MIB: Final = 2**20
_NARROWER: Final = 16
_COLUMNS: Final = (
    *("rank", "own weights", "peak", "peak, small model", "peak, no model"),
    *("read", "read, small model"),
)
_SMALL: Final = Goal("(peak - peak with the small model) / own weights", "at most", 1.15)
_NONE: Final = Goal("(peak - peak without any model) / own weights", "at most", 1.15)
_READ: Final = Goal("(read - read with the small model) / own weights", "at most", 1.05)
_TIME: Final = Goal("load time / plain safetensors read", "at most", 1.3)

Runs: TypeAlias = list[list[list[int]]]
"""The own bytes, peak bytes and read bytes of each rank, for each repetition."""


def measure(run: Run) -> None:
    """Write the models, and report memory, bytes read and load times."""
    options = run.options
    with TemporaryDirectory() as place:
        folders = {"no": "", "small": f"{place}/small", "large": f"{place}/large"}
        write_model(Path(folders["large"]), options.layers, options.size)
        write_model(Path(folders["small"]), options.layers, options.size // _NARROWER)
        runs: dict[str, Runs] = {which: [] for which in folders}
        for _ in range(options.repetitions):
            for which, folder in folders.items():
                found = run.job("load", ranks=_RANKS, seconds=300, folder=folder)
                runs[which].append(found)
        _report_memory(run.report, runs)
        _report_times(run.report, *time_loads(Path(folders["large"]), 1 + 5 * options.repetitions))


def load(options: Namespace) -> list[list[int]]:
    """Load the model of a folder, if any, and compute a batch. *Collective.*

    Returns:
        For each rank the bytes of its own weights, its peak of memory, and the bytes that it read.
    """
    owned = 0
    if options.folder:
        with Pipeline(options.folder, example_kwargs=example(), micro_batch=2) as pipe:
            pipe(**example())
            owned = pipe.summary().stages[pipe.rank].weight_bytes
    else:
        importlib.import_module("transformers.models.llama.modeling_llama")
    world = World.start()
    figures = world.all_gather(json.dumps([owned, peak_bytes(), bytes_read()]))
    world.close()
    return [json.loads(each) for each in figures]


def write_model(folder: Path, layers: int, size: int) -> None:
    """Write a Llama with random weights, in the format of `save_pretrained`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=size,
        intermediate_size=4 * size,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=1024,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def example() -> dict[str, torch.Tensor]:
    """Return two rows of eight tokens, whose activations are some hundred KiB."""
    ids = torch.arange(16).view(2, 8)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def bytes_read() -> int:
    """Return the bytes that this process has requested from the kernel so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def time_loads(folder: Path, repetitions: int) -> tuple[list[float], list[float], int]:
    """Time the loading of one stage of four.

    Returns:
        The seconds of pipepar, the seconds of safetensors, and the bytes of the stage. The first
        repetition only fills the page cache and is left out.
    """
    torch.set_num_threads(1)
    source = from_huggingface(folder, find_task("raw").head)
    graph = capture(source.module, (), example())
    plan = make_plan(graph, _RANKS)
    names = [spec.name for spec in weights_of(graph, plan.stages[1])]
    sides: list[Callable[[], object]] = [
        lambda: Stage.load(graph, plan, 1, source.weights),
        lambda: read_plainly(folder / "model.safetensors", names),
    ]
    times = [tuple(map(seconds_in_child, sides)) for _ in range(repetitions)]
    ours, plain = zip(*times[1:], strict=True)
    return list(ours), list(plain), plan.stages[1].weight_bytes


def seconds_in_child(action: Callable[[], object]) -> float:
    """Return the seconds of an action in a forked process, which has no freed memory to reuse."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        begin = time.perf_counter()
        action()
        os.write(writable, str(time.perf_counter() - begin).encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as result:
        seconds = result.read()
    os.waitpid(child, 0)
    return float(seconds)


def read_plainly(file: Path, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Read tensors with safetensors; without the copy a mapped tensor would not be read yet."""
    with safe_open(file, framework="pt") as content:
        return {name: content.get_tensor(name).clone() for name in names}


def _report_memory(report: Report, runs: dict[str, Runs]) -> None:
    empty, small, large = runs.values()
    total = sum(rank[0] for rank in large[0])
    report.note(f"the model: {total / _MIB:,.0f} MiB in {_RANKS} stages")

    def row(rank: int) -> Row:
        peaks = (scaled((run[rank][1] for run in runs), 1 / _MIB) for runs in (large, small, empty))
        reads = (scaled((run[rank][2] for run in runs), 1 / _MIB) for runs in (large, small))
        return [str(rank), f"{large[0][rank][0] / _MIB:.0f}", *peaks, *reads]

    report.table("MiB a rank", _COLUMNS, map(row, range(_RANKS)))

    def worst(column: int, base: Runs) -> Figure:
        """The largest ratio of all ranks: what exceeds the base, relative to the own weights."""
        return Figure(
            tuple(
                max((m[column] - b[column]) / m[0] for m, b in zip(mine, other, strict=True))
                for mine, other in zip(large, base, strict=True)
            )
        )

    for goal, column, base in ((_SMALL, 1, small), (_NONE, 1, empty), (_READ, 2, small)):
        report.goal(goal, worst(column, base))


def _report_times(report: Report, ours: list[float], plain: list[float], size: int) -> None:
    sides = {"pipepar": scaled(ours), "safetensors": scaled(plain)}
    report.table(
        "one stage, from the page cache",
        ("by", "seconds", "MiB/s"),
        [(side, time, f"{size / _MIB / time.median:,.0f}") for side, time in sides.items()],
    )
    report.goal(_TIME, ratio(ours, plain))


BENCHMARK: Final = Benchmark(
    question="how much does a rank hold and read?",
    duration="3 minutes; 5 GiB of memory and 2 GiB of disk",
    measure=measure,
    jobs={"load": load},
    options=(
        Option("layers", 8, "layers of the model"),
        Option("size", 2048, "features of a token"),
        Option("repetitions", 3, "repetitions"),
    ),
    goals=(_SMALL, _NONE, _READ, _TIME),
)
