"""Only rank 0 holds the weights of the whole model; it sends each stage its own.

    mpirun -n 2 python examples/weights_on_one_rank.py

Inside `values_on_root` the other ranks build the model on the meta device: the parameters have
shapes and dtypes but no memory. So the host memory of one rank has to hold the model, not of all.
"""

import torch
from torch import nn

from pipepar import Pipeline, values_on_root


def main() -> None:
    """Build the model on rank 0 only, and compare."""
    torch.manual_seed(0)
    with values_on_root():
        model = nn.Sequential(*(nn.Linear(128, 128) for _ in range(6))).eval()
    x = torch.randn(8, 128)
    with Pipeline(model, example_args=(x,), micro_batch=8) as pipe:
        y = pipe(x)
        on_meta = next(model.parameters()).is_meta
        assert on_meta == (pipe.rank != 0)
        if pipe.rank == 0:
            with torch.no_grad():
                assert torch.equal(y, model(x))
            print("equal to the unsplit model, which only rank 0 holds")


if __name__ == "__main__":
    main()
