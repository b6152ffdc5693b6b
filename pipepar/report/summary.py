"""The printed summary of a run."""

from __future__ import annotations

import dataclasses
from typing import Final

from rich.console import Console
from rich.table import Table

from pipepar.format import bar, readable_bytes
from pipepar.report.quality import print_confusion
from pipepar.report.run_record import RunRecord

# Width of a bar, in characters.
_BAR: Final = 20
# The remedy for the largest cause of idle time is printed if its share exceeds this.
_LARGE: Final = 0.1
_REMEDIES: Final = {
    "fill": "let more micro-batches flow: make them smaller, or give more input at once",
    "imbalance": "try another number of ranks, or measure again: mpirun pipepar plan --profile",
    "transfer": "try larger micro-batches, more depth, or cuts where less crosses: pipepar plan "
    "--show-cuts",
    "source": "prepare the input beforehand, as arrays, or give rank 0 more threads",
    "sink": "write tensors rather than answers, or do less in --postprocess",
}


def print_summary(record: RunRecord, console: Console) -> None:
    """Print the summary of a run."""
    speed = record.samples / record.seconds if record.seconds else 0.0
    has_prediction = record.samples and record.predicted is not None
    predicted = f" (predicted {record.predicted:,.1f})" if has_prediction else ""
    console.print(
        f"[bold]{record.samples:,} samples in {record.seconds:.1f} s, {speed:,.1f} samples/s[/]"
        f"{predicted} · {record.efficiency:.0%} of the perfect pipeline's speed (bound "
        f"{record.bound:.1f} s)"
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("stage", "host", "computes on", "weights", "peak memory", "busy", ""):
        left = column in ("host", "computes on", "")
        table.add_column(column, justify="left" if left else "right")
    for index, stage in enumerate(record.stages):
        share = stage.totals["compute"].seconds / record.seconds if record.seconds else 0.0
        table.add_row(
            str(index),
            stage.host,
            stage.device_text,
            readable_bytes(stage.weight_bytes),
            readable_bytes(stage.peak_bytes),
            f"{share:.0%}",
            bar(share, _BAR),
        )
    console.print(table)
    if record.samples:
        _print_idle(record, console)
    if record.confusion is not None:
        print_confusion(record.confusion, console)


def _print_idle(record: RunRecord, console: Console) -> None:
    """Print the busiest stage, the shares of idle time, and a remedy for the largest share."""
    busiest = record.busiest
    number = record.stages.index(busiest)
    console.print(
        f"busiest: stage {number} on {busiest.host}, at work "
        f"{busiest.work / record.seconds:.0%} of the time"
    )
    shares = dataclasses.asdict(record.idle)
    console.print("idle: " + " · ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    largest = max(shares, key=lambda name: shares[name])
    if shares[largest] > _LARGE and largest in _REMEDIES:
        console.print(f"{largest} is large: {_REMEDIES[largest]}")
