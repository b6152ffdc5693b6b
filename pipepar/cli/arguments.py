"""Arguments that several subcommands share."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import typer

Model: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face model folder, package.module:factory (a function that returns an "
        "nn.Module), or a .pt2 file from torch.export.save.",
    ),
]

Preprocess: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FUNCTION",
        help="Function that makes the model's arguments. It takes the samples of a micro-batch "
        "(a list of strings, a list of RGB PIL images, the tensor of a .npy file, or a dict of "
        "tensors) and returns a tensor, a tuple or a dict of tensors, one row per sample.",
    ),
]

DeviceKind: TypeAlias = Literal["auto", "cpu", "cuda"]

Device: TypeAlias = Annotated[
    DeviceKind,
    typer.Option(
        help="Device of each rank. cuda: one GPU per rank, selected by local rank among those that "
        "the launcher or CUDA_VISIBLE_DEVICES makes visible. auto: a GPU where there is one, "
        "otherwise the CPU; stages on GPUs and CPUs can be mixed."
    ),
]

Dtype: TypeAlias = Annotated[
    Literal["auto", "float32", "float16", "bfloat16"],
    typer.Option(
        help="Dtype to compute in; weights and floating-point inputs are cast to it. auto: the "
        "dtype of the checkpoint or of the factory's model."
    ),
]
