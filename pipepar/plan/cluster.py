"""The devices and links to plan for, read from a `cluster.toml`.

The file lists the devices in the order of the pipeline, the device of rank 0 first, and the links
between them::

    [[device]]
    kind = "gpu"            # any name; devices of one kind have the same memory and speed
    count = 3               # number of such devices in a row; 1 if left out
    memory = "40 GiB"       # memory for a stage
    speed = "20 TFLOPS"     # speed that it reaches, not the speed on its data sheet

    [[device]]
    kind = "cpu"
    memory = "64 GiB"
    speed = "800 GFLOPS"

    [[link]]                # between any two devices
    latency = "10 us"       # time of an empty message
    bandwidth = "25 GB/s"   # of a large message

    [[link]]                # between these kinds, in either direction
    between = ["gpu", "gpu"]
    latency = "2 us"
    bandwidth = "300 GB/s"

Every quantity is a number and a unit: B, kB, MB, GB, TB or KiB, MiB, GiB, TiB for memory; MFLOPS,
GFLOPS, TFLOPS or PFLOPS (floating-point operations per second) for speed; ns, us, ms or s for
latency; MB/s, GB/s, TB/s or Mbit/s, Gbit/s for bandwidth.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from pipepar.errors import InputError
from pipepar.plan.costs import DeviceCost, LinkCost
from pipepar.plan.hardware import Cluster

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Units = Mapping[str, float]

_MEMORY: Final[Units] = {
    **{"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    **{"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40},
}
_SPEED: Final[Units] = {"MFLOPS": 1e6, "GFLOPS": 1e9, "TFLOPS": 1e12, "PFLOPS": 1e15}
_LATENCY: Final[Units] = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_BANDWIDTH: Final[Units] = {
    **{"MB/s": 1e6, "GB/s": 1e9, "TB/s": 1e12},
    **{"Mbit/s": 1e6 / 8, "Gbit/s": 1e9 / 8},
}
# The key of the link for all pairs of kinds without a link of their own.
_ANY: Final[frozenset[str]] = frozenset()
_QUANTITY: Final = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?) ?(\D\S*)", re.ASCII)


def read_cluster(path: Path) -> Cluster:
    """Read and check a `cluster.toml`.

    Args:
        path: the file; the docstring of this module describes it.

    Returns:
        Its devices, and a link for every pair of kinds that two devices have.

    Raises:
        InputError: the file cannot be read or is not TOML, or a value is missing, unknown or wrong.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"--cluster {path} cannot be read: {error.strerror}; name a file that describes the "
            "devices and links to plan for"
        ) from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise InputError(
            f"--cluster {path} is not valid TOML: {error}; correct the file"
        ) from error
    file = _Table(f"{path}: ", content)
    file.check_names("device", "link")
    devices = tuple(device for table in file.tables("device") for device in _devices(table))
    if not devices:
        raise InputError(f"{path} has no device, expected one or more; add a [[device]]")
    _check_kinds(path, devices)
    return Cluster(devices, _links(path, devices, list(file.tables("link"))))


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of the file, with its position for error messages."""

    where: str
    content: Mapping[str, Any]

    def check_names(self, *known: str) -> None:
        """Refuse unknown keys, which would otherwise be ignored."""
        for name in self.content:
            if name not in known:
                raise InputError(
                    f"{self.where}{name} is unknown, expected {', '.join(known)}; remove it, or "
                    "correct its name"
                )

    def tables(self, name: str) -> Iterator[_Table]:
        """Yield the tables written under [[name]]; none if the name is missing."""
        found = self.content.get(name, [])
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise self.wrong(name, f"a list of tables; write [[{name}]] above each")
        for index, each in enumerate(found):
            yield _Table(f"{self.where}{name}[{index}].", each)

    def value(self, name: str, expected: str) -> Any:
        """Return the value of a key; raise InputError if it is missing.

        Args:
            name: the key.
            expected: description of valid values, for the error.
        """
        if name not in self.content:
            raise InputError(f"{self.where}{name} is missing, expected {expected}")
        return self.content[name]

    def quantity(self, name: str, units: Units, example: str, zero: bool = False) -> float:
        """Return a quantity, converted to the unit whose factor is 1.

        Args:
            name: a key of the table.
            units: the factor of each unit.
            example: a valid value, for the error.
            zero: whether 0 is valid.
        """
        least = "" if zero else " above 0"
        expected = f'a number{least} with a unit ({", ".join(units)}); for example "{example}"'
        text = self.value(name, expected)
        found = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
        number = float(found[1]) if found else math.inf
        if found is None or found[2] not in units or math.isinf(number) or not (number or zero):
            raise self.wrong(name, expected)
        return number * units[found[2]]

    def wrong(self, name: str, expected: str) -> InputError:
        """Return the error for the value of a key that is not as expected."""
        return InputError(f"{self.where}{name} is {self.content[name]!r}, expected {expected}")


def _devices(table: _Table) -> list[DeviceCost]:
    table.check_names("kind", "count", "memory", "speed")
    name = 'a name; write, for example, "gpu"'
    kind = table.value("kind", name)
    if not isinstance(kind, str) or not kind:
        raise table.wrong("kind", name)
    count = table.content.get("count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise table.wrong("count", "a whole number, 1 or more; write it without quotes")
    memory = table.quantity("memory", _MEMORY, "16 GiB")
    speed = table.quantity("speed", _SPEED, "20 TFLOPS")
    return [DeviceCost(speed=speed, memory=memory, kind=kind)] * count


def _check_kinds(path: Path, devices: Sequence[DeviceCost]) -> None:
    first: dict[str, DeviceCost] = {}
    for device in devices:
        if first.setdefault(device.kind, device) != device:
            raise InputError(
                f"{path} has devices of kind {device.kind!r} that differ in memory or speed, "
                "expected the same for all devices of a kind; give each a kind of its own"
            )


def _links(
    path: Path, devices: Sequence[DeviceCost], tables: Sequence[_Table]
) -> dict[frozenset[str], LinkCost]:
    """Return the link of each pair of kinds that two devices have, by the pair.

    A pair without a link of its own gets the link without 'between'.
    """
    named: dict[frozenset[str], LinkCost] = {}
    for table in tables:
        table.check_names("between", "latency", "bandwidth")
        pair = _pair(table, {device.kind for device in devices})
        if pair in named:
            which = "between these kinds" if pair else "without 'between'"
            raise InputError(f"{table.where[:-1]} is the second {which}, expected one; remove one")
        latency = table.quantity("latency", _LATENCY, "10 us", zero=True)
        named[pair] = LinkCost(latency, table.quantity("bandwidth", _BANDWIDTH, "25 GB/s"))
    links = {}
    for pair in sorted({_kinds(*two) for two in combinations(devices, 2)}, key=sorted):
        link = named.get(pair, named.get(_ANY))
        if link is None:
            kinds = [*sorted(pair), *pair][:2]
            raise InputError(
                f"{path} has no link between {kinds[0]!r} and {kinds[1]!r}, expected one for every "
                f"pair of devices; add a [[link]] with between = {kinds}, or one without 'between' "
                "for all pairs"
            )
        links[pair] = link
    return links


def _kinds(one: DeviceCost, other: DeviceCost) -> frozenset[str]:
    return frozenset((one.kind, other.kind))


def _pair(table: _Table, kinds: set[str]) -> frozenset[str]:
    if "between" not in table.content:
        return _ANY
    pair = table.content["between"]
    if isinstance(pair, list) and len(pair) == 2 and all(kind in kinds for kind in map(str, pair)):
        return frozenset(map(str, pair))
    raise table.wrong(
        "between", f'two of the kinds {sorted(kinds)}; write, for example, ["gpu", "gpu"]'
    )
