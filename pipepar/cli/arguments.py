"""Arguments that several verbs take."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import typer

Model: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face model folder, package.module:factory, or an exported .pt2.",
    ),
]

Preprocess: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FUNCTION",
        help="Makes the model's arguments. Given a micro-batch's samples (a list of strings, a "
        "list of RGB PIL images, a .npy's tensor, or a dict of tensors), it returns a tensor, a "
        "tuple of tensors or a dict of tensors, a row a sample.",
    ),
]

DeviceKind: TypeAlias = Literal["auto", "cpu", "cuda"]

Device: TypeAlias = Annotated[
    DeviceKind,
    typer.Option(
        help="What ranks compute on. cuda: a GPU each, the one of its local rank among those that "
        "the launcher or CUDA_VISIBLE_DEVICES leaves it. auto: a GPU where there is one, else the "
        "CPU; stages of both kinds can be mixed."
    ),
]

Dtype: TypeAlias = Annotated[
    Literal["auto", "float32", "float16", "bfloat16"],
    typer.Option(
        help="What to compute in; weights and floating-point inputs are cast to it. auto: what "
        "the checkpoint or the factory says."
    ),
]
