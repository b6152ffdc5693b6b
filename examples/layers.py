"""A model that cannot be traced is given as a list of layers.

    mpirun -n 2 python examples/layers.py

`torch.export` cannot trace a loop whose length depends on values. `Pipeline(layers=[...])` does not
trace: it cuts between layers. Each layer is called with the result of the one before it; a tuple is
passed as several arguments.
"""

import torch
from torch import nn

from pipepar import Pipeline


class Halve(nn.Module):
    """Halves its input until every value is below 1: the number of steps depends on values."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the halved rows [B, F], and the number of steps of each row [B]."""
        steps = torch.zeros(len(x), dtype=torch.int64)
        while (large := x.amax(1) >= 1).any():
            x = torch.where(large[:, None], x / 2, x)
            steps += large
        return x, steps


class Restore(nn.Module):
    """Undoes `Halve`; takes both of its results."""

    def forward(self, x: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Return rows [B, F]."""
        return x * (2.0**steps)[:, None]


def main() -> None:
    """Send rows through both layers, which are exact inverses."""
    x = torch.randint(1, 1000, (24, 16)).float()
    with Pipeline(layers=[Halve(), Restore()], example_args=(x,), micro_batch=4) as pipe:
        y = pipe(x)
        if pipe.rank == 0:
            assert torch.equal(x, y)
            print(f"{len(y)} rows halved and restored")


if __name__ == "__main__":
    main()
