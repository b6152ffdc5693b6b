"""The plan: the nodes and weights of each stage, and the values that cross between stages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, TypeAlias

from pipepar.errors import PlanError

Edge = tuple[int, int]

_VERSION: Final = 3
_Reader: TypeAlias = Callable[[object, str], Any]


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: a contiguous part of the model's graph, owned by one rank."""

    index: int
    """Position of the stage in the pipeline, from 0."""
    begin: int
    """Position of its first node among the compute nodes of the graph."""
    end: int
    """Position after its last node."""
    inputs: tuple[str, ...]
    """Names of the values that the stage is called with, in this order."""
    outputs: tuple[str, ...]
    """Names of the values that it computes for a later stage or for the output of the model."""
    weights: tuple[str, ...]
    """Names of its parameters and persistent buffers."""
    weight_bytes: int
    """Size of those weights, in bytes."""
    flops: int
    """Floating-point operations of one forward pass, at the sizes of the example."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A model divided into stages; the same on every rank."""

    model: str
    """Digest of the graph that the plan was made for."""
    inputs: tuple[str, ...]
    """Names of the flattened inputs of the model, in order; they enter at stage 0."""
    outputs: tuple[str, ...]
    """Names of the values in the output of the model; they leave at the last stage."""
    stages: tuple[StagePlan, ...]
    """The stages, in order; each begins at the node where the one before it ends."""
    micro_batch: int | None = None
    """Samples in a micro-batch, at least 1; None if the run decides."""
    depth: int | None = None
    """Micro-batches that may wait on each end of a channel, at least 1; None if the run decides."""
    ranks: tuple[int, ...] | None = None
    """The rank of each stage, all different; None for stage k on rank k."""

    def __post_init__(self) -> None:
        """Refuse a plan that cannot be run, with PlanError."""
        _check_sequence(self.stages)
        _check_ranks(self)
        _check_values(self)

    @property
    def edges(self) -> dict[Edge, tuple[str, ...]]:
        """The names of the crossing values, by (producer stage, consumer stage), sorted.

        A skip goes directly from its producer to its consumer. The inputs of the model are produced
        by stage 0, its outputs are consumed by the last stage. A later stage that needs no value of
        another stage has an edge without values from the stage before it, which notifies it of the
        micro-batches.
        """
        producer = _producers(self)
        last = len(self.stages) - 1
        crossing: dict[Edge, list[str]] = {}
        for stage in self.stages:
            needed = stage.inputs + (self.outputs if stage.index == last else ())
            for name in dict.fromkeys(needed):
                source = producer[name]
                if source != stage.index:
                    crossing.setdefault((source, stage.index), []).append(name)
        fed = {consumer for _, consumer in crossing}
        crossing |= {(k - 1, k): [] for k in range(1, last + 1) if k not in fed}
        return {edge: tuple(crossing[edge]) for edge in sorted(crossing)}

    @property
    def digest(self) -> str:
        """SHA-256 of the JSON of the plan, in hexadecimal digits; ranks compare it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return the plan as indented JSON with a final newline; equal plans give equal text."""
        content = {"version": _VERSION, **asdict(self)}
        content["stages"] = content.pop("stages")  # last, since they are long
        return json.dumps(content, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read the JSON of a plan, and check every field.

        Args:
            text: what `to_json` returned.

        Raises:
            PlanError: the text is not JSON; or the version differs; or a field is missing,
                is unknown, has the wrong type, contains a name twice, or contradicts another field.
        """
        try:
            content = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise PlanError(
                f"the plan is not valid JSON: {error}; make it again with `pipepar plan`"
            ) from error
        values = _record(content, "plan", ["version", *(field.name for field in fields(Plan))])
        del values["version"]
        return Plan(**values)


def _record(content: object, where: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of an object, which has exactly these names, after reading each."""
    if not isinstance(content, dict):
        raise _wrong_type(where, "an object", content)
    for name in sorted(set(names) - content.keys()):
        raise PlanError(f"{where}.{name} is missing; make the plan again with `pipepar plan`")
    for name in sorted(content.keys() - set(names)):
        raise PlanError(f"{where}.{name} is not a field of a plan; remove it")
    return {name: _READERS.get(name, _count)(content[name], f"{where}.{name}") for name in names}


def _version(content: object, where: str) -> int:
    version = _count(content, where)
    if version != _VERSION:
        raise PlanError(
            f"{where} is {version}, expected {_VERSION}; make it again with `pipepar plan`"
        )
    return version


def _count(content: object, where: str) -> int:
    if not isinstance(content, int) or isinstance(content, bool) or content < 0:
        raise _wrong_type(where, "a whole number, 0 or more", content)
    return content


def _size(content: object, where: str) -> int | None:
    if content is None or (isinstance(content, int) and content is not True and content > 0):
        return content
    raise _wrong_type(where, "a whole number, 1 or more, or null", content)


def _string(content: object, where: str) -> str:
    if not isinstance(content, str):
        raise _wrong_type(where, "a string", content)
    return content


def _list(content: object, where: str, expected: str, read: _Reader) -> tuple[Any, ...]:
    if not isinstance(content, list):
        raise _wrong_type(where, expected, content)
    return tuple(read(item, f"{where}[{i}]") for i, item in enumerate(content))


def _ranks(content: object, where: str) -> tuple[int, ...] | None:
    return None if content is None else _list(content, where, "a list of ranks, or null", _count)


def _names(content: object, where: str) -> tuple[str, ...]:
    names = _list(content, where, "a list of names", _string)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PlanError(f"{where} contains {twice!r} twice, expected each name once; remove one")
    return names


def _stages(content: object, where: str) -> tuple[StagePlan, ...]:
    names = [field.name for field in fields(StagePlan)]
    return _list(
        content, where, "a list of stages", lambda item, at: StagePlan(**_record(item, at, names))
    )


# The reader of each field by its name; all others are counts.
_READERS: Final[Mapping[str, _Reader]] = {
    "version": _version,
    "model": _string,
    **dict.fromkeys(("inputs", "outputs", "weights"), _names),
    **dict.fromkeys(("micro_batch", "depth"), _size),
    "ranks": _ranks,
    "stages": _stages,
}


def _wrong_type(where: str, expected: str, found: object) -> PlanError:
    return PlanError(
        f"{where} is {found!r}, expected {expected}; make the plan again with `pipepar plan`"
    )


def _check_sequence(stages: tuple[StagePlan, ...]) -> None:
    if not stages:
        raise PlanError("plan.stages is empty, expected one stage or more; plan for 1 rank or more")
    position = 0
    for index, stage in enumerate(stages):
        where = f"plan.stages[{index}]"
        if stage.index != index:
            raise PlanError(f"{where}.index is {stage.index}, expected {index}; sort the stages")
        if stage.begin != position:
            raise PlanError(
                f"{where}.begin is {stage.begin}, expected {position}, the end of the stage before "
                f"it; make the plan again with `pipepar plan`"
            )
        if stage.end <= stage.begin:
            raise PlanError(
                f"{where}.end is {stage.end}, expected more than its begin, {stage.begin}; plan "
                f"for fewer ranks"
            )
        position = stage.end


def _check_ranks(plan: Plan) -> None:
    ranks = plan.ranks
    if ranks is not None and (len(ranks) != len(plan.stages) or len(set(ranks)) != len(ranks)):
        raise PlanError(
            f"plan.ranks is {list(ranks)}, expected a different rank for each of the "
            f"{len(plan.stages)} stages; make the plan again with `pipepar plan`"
        )


def _check_values(plan: Plan) -> None:
    producer = _producers(plan)
    for stage in plan.stages:
        for name in stage.inputs:
            if name not in plan.inputs and producer.get(name, stage.index) >= stage.index:
                raise PlanError(
                    f"plan.stages[{stage.index}].inputs contains {name!r}, expected an input of "
                    f"the model or an output of an earlier stage; make the plan again with "
                    f"`pipepar plan`"
                )
    for name in plan.outputs:
        if name not in producer:
            raise PlanError(
                f"plan.outputs contains {name!r}, expected an input of the model or an output of a "
                f"stage; make the plan again with `pipepar plan`"
            )


def _producers(plan: Plan) -> dict[str, int]:
    """Return the stage that produces each value; stage 0 for the inputs of the model."""
    producer = dict.fromkeys(plan.inputs, 0)
    for stage in plan.stages:
        for name in stage.outputs:
            if name in producer:
                raise PlanError(
                    f"plan.stages[{stage.index}].outputs contains {name!r}, which stage "
                    f"{producer[name]} already provides, expected one producer for each value; "
                    f"make the plan again with `pipepar plan`"
                )
            producer[name] = stage.index
    return producer
