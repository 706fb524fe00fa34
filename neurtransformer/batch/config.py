"""What the YAML file of a batch may say; `docs/batch.md` explains it with examples."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from neurtransformer.device import Dtype, is_device
from neurtransformer.recipe import Coding, Section, checked, read_yaml

Step = Literal["convert", "finetune", "eval", "energy", "export", "simulate", "place"]
STEPS: tuple[Step, ...] = get_args(Step)

_PAGE = "docs/batch.md"

CPYTHON = "cpython"
"""The name of the text that is taken where none is given."""

DEFAULT = "default"
"""The name of the recipe of `neurtx convert` without options."""


def _shaped(pattern: str, must: str) -> AfterValidator:
    """Refuses text that does not fit a pattern. must: what the pattern asks for, in words."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must {must}")
        return text

    return AfterValidator(check)


# part of an entry's id, of names of folders and of shell words
Name = Annotated[
    str,
    Field(max_length=60),
    _shaped(
        r"[A-Za-z0-9][A-Za-z0-9_-]*",
        "hold only letters, digits, - and _, and begin with a letter or a digit",
    ),
]
# `-` would be standard input, which comes only once
Source = Annotated[str, Field(min_length=1), _shaped(r"(?s)[^-].*", "not begin with -")]
Count = Annotated[int, Field(ge=1)]
Tokens = Annotated[int, Field(ge=2)]


def _device(name: str) -> str:
    """A device that has a name; the machine that does the step says whether it has it."""
    if not is_device(name):
        raise ValueError("must be cpu, cuda or cuda:N")
    return name


Device = Annotated[str, AfterValidator(_device)]


def _keyed(key: str) -> BeforeValidator:
    """A lone word stands for a mapping that has it under `key`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class Model(Section):
    """A dense model, as `neurtx convert` takes it."""

    model: Source
    name: Name | None = None


class Text(Section):
    """A text that is measured on: `cpython`, a file or a hub data set."""

    text: Source
    name: Name | None = None


class RecipeOptions(Section):
    """Options of `neurtx convert`; a lone word is `default` or a file."""

    config: Source | None = None
    attention: str | None = None
    coding: Coding | None = None
    timesteps: int | None = None
    name: Name | None = None


class Convert(Section):
    text: Source | None = None
    device: Device | None = None


class Finetune(Section):
    text: Source | None = None
    steps: Count | None = None
    train: Literal["ssa", "blocks"] | None = None
    spikes_budget: Annotated[float, Field(gt=0, le=1)] | None = None
    device: Device | None = None


class Eval(Section):
    limit: Tokens | None = None
    block: Tokens | None = None
    mode: Literal["counts", "steps"] | None = None
    device: Device | None = None
    dtype: Dtype | None = None


class Energy(Section):
    limit: Tokens | None = None
    device: Device | None = None
    dtype: Dtype | None = None


class Export(Section):
    spikes: Literal["binary", "graded"] | None = None
    device: Device | None = None


class Simulate(Section):
    prompt: Annotated[str, Field(min_length=1)] = "The history of the world is"
    tokens: Count | None = None
    backend: Literal["lava", "integer"] | None = None


class Place(Section):
    chip: Source | None = None


class Config(Section):
    """A batch. Each of `STEPS` has a mapping of options under its own name."""

    models: Annotated[tuple[Annotated[Model, _keyed("model")], ...], Field(min_length=1)]
    recipes: Annotated[
        tuple[Annotated[RecipeOptions, _keyed("config")], ...], Field(min_length=1)
    ] = (RecipeOptions(config=DEFAULT),)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    texts: Annotated[tuple[Annotated[Text, _keyed("text")], ...], Field(min_length=1)] = (
        Text(text=CPYTHON),
    )
    steps: tuple[Step, ...] = STEPS
    convert: Convert = Convert()
    finetune: Finetune = Finetune()
    eval: Eval = Eval()
    energy: Energy = Energy()
    export: Export = Export()
    simulate: Simulate = Simulate()
    place: Place = Place()

    @field_validator("steps", "seeds")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("one stands there twice")
        return values

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        needs = {"simulate": "export", "place": "export"}
        for step in self.steps:
            if (before := needs.get(step)) and before not in self.steps:
                raise ValueError(f"steps: {step} needs {before} among the steps")
        if "convert" not in self.steps:
            raise ValueError("steps: convert has to be among the steps")
        if len(self.seeds) > 1 and "finetune" not in self.steps:
            # rows that are equal would look as if they had been measured anew
            raise ValueError("seeds: only finetune has one, and it is not among the steps")
        return self

    def options(self, step: Step) -> dict[str, Any]:
        """The options of a step that are given."""
        section: Section = getattr(self, step)
        return {key: value for key, value in section.model_dump().items() if value is not None}


def read_config(path: Path) -> Config:
    """The batch that the file at `path` describes. Raises UserError if it describes none."""
    return checked(Config, read_yaml(path, _PAGE), path, _PAGE)
