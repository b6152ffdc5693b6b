"""The table of a plan and its predicted times, for terminals of 80 columns or more."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from rich.markup import escape
from rich.table import Table

from pipepar.format import bar, readable_bytes, readable_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from pipepar.plan.costs import DeviceCost
    from pipepar.plan.hardware import DeviceSubset, Hardware
    from pipepar.plan.plan import Plan, StagePlan
    from pipepar.planner.choice import Choice
    from pipepar.planner.prediction import Prediction, StagePrediction

# Columns of a full bar, and of the shortest full bar that is drawn.
_BAR: Final = 20
_LEAST_BAR: Final = 4
# Columns of a device name that is not abbreviated.
_SHORT_NAME: Final = 8
# Relative difference of speeds up to which devices count as equally fast.
_SAME_SPEED: Final = 0.05


def print_shares(plan: Plan, console: Console) -> None:
    """Print each stage's share of the counted operations.

    Args:
        plan: the plan.
        console: the output.
    """
    work = [stage.flops for stage in plan.stages]
    most, total = max(work) or 1, sum(work) or 1
    columns = _columns(plan.stages)
    bars = [(each / total, each / most) for each in work]
    console.print(_table(columns, "compute", bars, console.width))
    _print_skips(plan, console)


def print_prediction(choice: Choice, console: Console, *, measured: bool) -> None:
    """Print the predicted memory and times of each stage and of the whole pipeline.

    Args:
        choice: the plan and its prediction.
        console: the output.
        measured: whether the devices were measured; the speed of each is then relative to the
            usual speed of such a device.
    """
    prediction = choice.prediction
    devices = [stage.device for stage in prediction.stages]
    names = _names(devices)
    columns = _columns(choice.plan.stages)
    if len(names) > 1:
        columns["on"] = [names[device.kind] for device in devices]
    shows_pace = measured and _differ(devices)
    if shows_pace:
        columns["pace"] = [f"{device.speed:.2f}" for device in devices]
    columns |= _predicted(prediction.stages)
    slowest = prediction.bottleneck or 1.0
    shares = [stage.slowest / slowest for stage in prediction.stages]
    _print_names(names, console)
    console.print(_table(columns, "balance", list(zip(shares, shares, strict=True)), console.width))
    if shows_pace:
        console.print("pace: speed relative to the usual speed of such a device")
    _print_skips(choice.plan, console)
    _print_order(prediction.target.hardware, console)
    _print_whole(prediction, console)
    origin = "measured" if measured else "from operation counts and the cluster file"
    console.print(f"Times are {origin}.")


def _columns(stages: Sequence[StagePlan]) -> dict[str, list[str]]:
    return {
        "stage": [str(stage.index) for stage in stages],
        "operations": [f"{stage.begin}-{stage.end - 1}" for stage in stages],
        "weights": [readable_bytes(stage.weight_bytes) for stage in stages],
    }


def _predicted(stages: Sequence[StagePrediction]) -> dict[str, list[str]]:
    return {
        "memory": [_of_capacity(stage.memory, stage.device.memory) for stage in stages],
        "compute": [readable_seconds(stage.compute) for stage in stages],
        "transfer": ["", *(readable_seconds(stage.transfer) for stage in stages[1:])],
    }


def _of_capacity(used: float, capacity: float) -> str:
    """Return both numbers of bytes with a unit, such as "18 of 11,000 MiB"."""
    if capacity < 2**24:
        return f"{readable_bytes(round(used))} of {readable_bytes(round(capacity))}"
    if used < 2**30:
        return f"{math.ceil(used / 2**20):,} of {capacity / 2**20:,.0f} MiB"
    return f"{used / 2**30:,.1f} of {capacity / 2**30:,.1f} GiB"


def _names(devices: Sequence[DeviceCost]) -> Mapping[str, str]:
    """Return the name of each kind of device in the table: the kind if all are short, else a, b."""
    kinds = dict.fromkeys(device.kind for device in devices)
    if all(len(kind) <= _SHORT_NAME for kind in kinds):
        return {kind: kind for kind in kinds}
    return {kind: chr(ord("a") + index) for index, kind in enumerate(kinds)}


def _print_names(names: Mapping[str, str], console: Console) -> None:
    for kind, name in names.items():
        if len(names) == 1:
            console.print(f"device: {kind}", markup=False)
        elif name != kind:
            console.print(f"{name} = {kind}", markup=False)


def _differ(devices: Sequence[DeviceCost]) -> bool:
    """Return whether the measured speeds differ from each other, or one is below the usual."""
    speeds = [device.speed for device in devices]
    return max(speeds) > (1 + _SAME_SPEED) * min(speeds) or min(speeds) < 1 - 2 * _SAME_SPEED


def _table(
    columns: Mapping[str, Sequence[str]],
    last: str,
    bars: Sequence[tuple[float, float]],
    width: int,
) -> Table:
    """Return a table of text columns and a last column of percentages, with bars if they fit.

    Args:
        columns: the cells of each text column, by its title.
        last: title of the last column.
        bars: share and length of each bar, 0 to 1.
        width: columns of the terminal.
    """
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(last, no_wrap=True)
    used = sum(1 + max(map(len, (name, *cells))) for name, cells in columns.items())
    room = width - used - len("100% ")
    full = min(_BAR, room) if room >= _LEAST_BAR else 0
    for *cells, (share, length) in zip(*columns.values(), bars, strict=True):
        table.add_row(*map(escape, cells), f"{share:4.0%} {bar(length, full)}")
    return table


def _print_skips(plan: Plan, console: Console) -> None:
    """Print the values that skip a stage."""
    skips: dict[tuple[int, tuple[str, ...]], list[str]] = defaultdict(list)
    for (producer, consumer), names in plan.edges.items():
        if consumer > producer + 1:
            skips[producer, names].append(str(consumer))
    for (producer, names), consumers in skips.items():
        to = f"stage{'s' * (len(consumers) > 1)} {', '.join(consumers)}"
        console.print(f"skips: {', '.join(names)} from stage {producer} to {to}", markup=False)


def _print_order(hardware: Hardware, console: Console) -> None:
    """Print the device of each rank if the plan changes the order of the devices, or omits some."""
    from pipepar.plan.hardware import DeviceSubset

    if not isinstance(hardware, DeviceSubset):
        return
    given = range(len(hardware.whole.devices))
    if list(hardware.order) == list(given):
        return
    console.print(f"start ranks on these devices, in order: {_listed(hardware, hardware.order)}")
    unused = [index for index in given if index not in hardware.order]
    if unused:
        console.print(f"left out: {_listed(hardware, unused)}")


def _listed(hardware: DeviceSubset, indices: Sequence[int]) -> str:
    devices = hardware.whole.devices
    return ", ".join(escape(f"{index} ({devices[index].kind})") for index in indices)


def _print_whole(prediction: Prediction, console: Console) -> None:
    target, timeline = prediction.target, prediction.timeline
    count = target.microbatches
    samples = "" if target.samples is None else f"{target.samples:,} samples, "
    console.print(
        f"[bold]predicted: {prediction.samples_per_second:,.1f} samples/s[/] · "
        f"{prediction.efficiency:.0%} of the perfect pipeline's speed"
    )
    console.print(
        f"{samples}{count:,} micro-batch{'es' * (count > 1)} of {target.micro_batch}, depth "
        f"{target.depth}: {readable_seconds(prediction.seconds)} (bound "
        f"{readable_seconds(prediction.bound)})"
    )
    console.print(
        f"pipeline full after {readable_seconds(timeline.fill)}, drains in "
        f"{readable_seconds(timeline.drain)}"
    )
