"""The planner takes numbers and returns stages: no model, no ranks.

    python examples/plan.py

`pipepar.plan` imports neither torch nor MPI, so a laptop can plan for a cluster. The costs here are
made up; `pipepar plan` counts or measures them.
"""

from itertools import pairwise

from pipepar.plan.costs import DeviceCost, LayerCost, LinkCost
from pipepar.plan.partition import partition

GIB = 2**30


def main() -> None:
    """Divide 24 equal layers between a fast device, a slow one, and a fast one."""
    # Work is in floating-point operations; `crossing` is what a cut before the layer would send.
    layers = [LayerCost(work=2e12, weights=GIB, crossing=8e6) for _ in range(24)]
    devices = [
        DeviceCost(speed=40e12, memory=24 * GIB),
        DeviceCost(speed=10e12, memory=24 * GIB),
        DeviceCost(speed=40e12, memory=8 * GIB),  # fast, but there is room for few layers
    ]
    links = [LinkCost(latency=10e-6, bandwidth=25e9)] * 2
    found = partition(layers, devices, links)
    bounds = (0, *found.cuts, len(layers))
    for device, (begin, end) in zip(found.devices, pairwise(bounds), strict=True):
        print(f"device {device}: layers {begin} to {end - 1}")
    print(f"slowest stage: {found.bottleneck * 1e3:.0f} ms a micro-batch")
    # The memory of the last device holds 7 layers. Of the other 17 the second device takes 3, in
    # 0.6 s; the first one takes 14, in 14 * 2 / 40 = 0.7 s.
    assert found.cuts == (14, 17)
    assert abs(found.bottleneck - 0.7) < 1e-9


if __name__ == "__main__":
    main()
