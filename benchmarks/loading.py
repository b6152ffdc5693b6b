"""What a rank holds and reads of a model, and how long that takes.

    python -m benchmarks.loading [--layers L] [--size D] [--repetitions R]

Four ranks load a Llama of at least 2 GiB in float32, two layers each. Memory is compared with the
same four processes loading the same model sixteen times narrower, and with four processes that
have imported and connected everything and load nothing. Loading one stage is timed in processes of
its own, in turn with the safetensors library reading the same tensors.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeAlias

import torch
from safetensors import safe_open

from benchmarks.launch import rank_command
from benchmarks.report import Figure, Goal, Report, ratio, scaled
from pipepar.comm.world import World
from pipepar.engine.stage import Stage, weights_of
from pipepar.model.capture.capture import capture
from pipepar.model.source.open_source import from_huggingface
from pipepar.pipeline import Pipeline
from pipepar.planner.plan_offline import make_plan
from pipepar.tasks.registry import find_task
from tests.helpers.cluster.mpirun import finish, mpirun, start

_SECONDS: Final = 300
_RANKS: Final = 4
_MIB: Final = 2**20
_NARROWER: Final = 16
"""By how much the small model is narrower."""

Runs: TypeAlias = list[list[list[int]]]
"""For each repetition and rank its owned bytes, peak bytes and bytes read."""


def write_model(folder: Path, layers: int, size: int) -> None:
    """A Llama with random weights, as `save_pretrained` writes it."""
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
    """Two rows of eight tokens: activations of some hundred KiB."""
    ids = torch.arange(16).view(2, 8)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def bytes_read() -> int:
    """Bytes that this process has asked the kernel for so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def run_rank(folder: str, result: Path) -> None:
    """Load a folder's model, compute a batch, and note what that took. *Collective.*"""
    torch.set_num_threads(1)
    owned = 0
    if folder:
        with Pipeline(folder, example_kwargs=example(), micro_batch=2) as pipe:
            pipe(**example())
            owned = pipe.summary().stages[pipe.rank].weight_bytes
    else:
        importlib.import_module("transformers.models.llama.modeling_llama")
    world = World.start()
    figures = world.all_gather(json.dumps([owned, peak_bytes(), bytes_read()]))
    if world.rank == 0:
        result.write_text("\n".join(figures))
    world.close()


def ranks_loading(folder: str) -> list[list[int]]:
    """Owned bytes, peak bytes and bytes read of every rank that loads a folder."""
    with TemporaryDirectory() as place:
        result = Path(place) / "figures"
        command = rank_command("benchmarks.loading", [f"--folder={folder}", f"--result={result}"])
        ended = finish(start([*mpirun(_RANKS), *command]), _SECONDS)
        if ended.status:
            sys.exit(ended.output)
        return [json.loads(line) for line in result.read_text().splitlines()]


def time_loads(folder: Path, repetitions: int) -> tuple[list[float], list[float], int]:
    """Seconds to load one stage of four, by pipepar and by safetensors alone."""
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
    ours, plain = zip(*times[1:], strict=True)  # the first ones warm the page cache
    return list(ours), list(plain), plan.stages[1].weight_bytes


def seconds_in_child(action: Callable[[], object]) -> float:
    """Time an action in a process that ends with it and begins without memory for it."""
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
    """Copied out of the file's mapping: without a copy nothing at all would be read yet."""
    with safe_open(file, framework="pt") as content:
        return {name: content.get_tensor(name).clone() for name in names}


def main() -> None:
    """Measure and print."""
    options = _options()
    if options.result:
        run_rank(options.folder, options.result)
        return
    with TemporaryDirectory() as place:
        large, small = Path(place) / "large", Path(place) / "small"
        write_model(large, options.layers, options.size)
        write_model(small, options.layers, options.size // _NARROWER)
        empties: Runs = []
        smalls: Runs = []
        larges: Runs = []
        for _ in range(options.repetitions):
            empties.append(ranks_loading(""))
            smalls.append(ranks_loading(str(small)))
            larges.append(ranks_loading(str(large)))
        report = Report("loading: what a rank holds and reads", ranks=_RANKS)
        _print_memory(report, empties, smalls, larges)
        _print_times(report, *time_loads(large, 1 + 5 * options.repetitions))


def _print_memory(report: Report, empty: Runs, small: Runs, large: Runs) -> None:
    owned = large[0]
    total = sum(rank[0] for rank in owned)
    report.note(f"the model: {total / _MIB:,.0f} MiB in {_RANKS} stages")

    def figure(runs: Runs, rank: int, column: int) -> Figure:
        return scaled((run[rank][column] for run in runs), 1 / _MIB)

    report.table(
        "MiB a rank",
        ("rank", "own weights", "peak", "peak, small model", "peak, no model", "read", "small"),
        [
            (
                str(rank),
                f"{owned[rank][0] / _MIB:.0f}",
                *(figure(runs, rank, 1) for runs in (large, small, empty)),
                *(figure(runs, rank, 2) for runs in (large, small)),
            )
            for rank in range(_RANKS)
        ],
    )

    def worst(column: int, base: Runs) -> Figure:
        """Of all ranks the largest share that was held or read beyond the base."""
        return Figure(
            tuple(
                max((m[column] - b[column]) / m[0] for m, b in zip(mine, other, strict=True))
                for mine, other in zip(large, base, strict=True)
            )
        )

    report.goals(
        [
            Goal("(peak - peak with small model) / own weights", "at most", 1.15, worst(1, small)),
            Goal("(peak - peak without any model) / own weights", "at most", 1.15, worst(1, empty)),
            Goal("(read - read with small model) / own weights", "at most", 1.05, worst(2, small)),
        ]
    )


def _print_times(report: Report, ours: list[float], plain: list[float], size: int) -> None:
    sides = {"pipepar": Figure(tuple(ours)), "safetensors": Figure(tuple(plain))}
    report.table(
        "one stage, from the page cache",
        ("by", "seconds", "MiB/s"),
        [(side, time, f"{size / _MIB / time.median:,.0f}") for side, time in sides.items()],
    )
    report.goals([Goal("load time / plain safetensors read", "at most", 1.3, ratio(ours, plain))])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", default="")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
