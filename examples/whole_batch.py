"""A model, split over the ranks, returns the same numbers as the unsplit model.

    mpirun -n 2 python examples/whole_batch.py

Every rank runs this script. Rank k owns stage k and loads only the weights of that stage. The data
of rank 0 is computed, and rank 0 receives the result.
"""

import torch
from torch import nn

from pipepar import Pipeline


def make_model() -> nn.Module:
    """Return a network with a skip connection, the same on every rank."""
    torch.manual_seed(0)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.relu(self.second(torch.relu(self.first(x))))

    return nn.Sequential(*(Residual() for _ in range(4))).eval()


def main() -> None:
    """Compute a batch of 32 rows in micro-batches of 8, and compare."""
    model, x = make_model(), torch.randn(32, 64)
    with Pipeline(model, example_args=(x,), micro_batch=8) as pipe:
        y = pipe(x)
        if pipe.rank == 0:
            with torch.no_grad():
                # A kernel may round by the number of rows, so the reference has micro-batches too.
                expected = torch.cat([model(rows) for rows in torch.split(x, 8)])
            assert torch.equal(y, expected)
            print(f"{tuple(y.shape)}: equal to the unsplit model")


if __name__ == "__main__":
    main()
