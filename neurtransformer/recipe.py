"""Recipes: what `configs/*.yaml` may say about converting and fine-tuning, checked by pydantic."""

import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from neurtransformer.errors import UserError, shortened
from neurtransformer.wording import told

R = TypeVar("R", bound=BaseModel)
MAX_TIMESTEPS = 64
"""Longest code for which float32 sums of spikes stay exact (`spiking.coding.snap_weights`)."""

MAX_PHASE_TIMESTEPS = 8
"""The same for phase coding, whose counts go up to 2^T - 1."""

MAX_LIMITED_TIMESTEPS = 16
"""Longest phase code of neurons that stop after a few spikes."""

MAX_YAML = 2**20
"""Bytes of the largest YAML file that is read."""

_DEFAULTS = "configs/default.yaml"

Coding = Literal["rate", "phase"]
Digits = Literal["binary", "signed"]


class Code(NamedTuple):
    """How counts are sent: in T time steps, by rate or phase coding, and by which digits if phase
    coded (`spiking/coding.py`)."""

    timesteps: int
    coding: Coding
    digits: Digits = "binary"

    @classmethod
    def of(cls, timesteps: int, coding: Coding, digits: Digits) -> Self:
        """With those digits if it has any: rate coding has none."""
        return cls(timesteps, coding, digits if coding == "phase" else "binary")

    @property
    def most(self) -> int:
        """The largest count."""
        return self.timesteps if self.coding == "rate" else 2**self.timesteps - 1


class Coded(Protocol):
    """What says how a network is coded: a recipe, or the config of a spiking or integer network."""

    @property
    def timesteps(self) -> int: ...
    @property
    def coding(self) -> Coding: ...
    @property
    def attention_timesteps(self) -> int | None: ...
    @property
    def attention_coding(self) -> Coding | None: ...
    @property
    def digits(self) -> Digits: ...


class Codes:
    """The codes that follow from it."""

    @property
    def code(self: Coded) -> Code:
        """The code of the feed-forward blocks."""
        return Code.of(self.timesteps, self.coding, self.digits)

    @property
    def attention_code(self: Coded) -> Code:
        """The code of the attention."""
        return Code.of(
            self.attention_timesteps or self.timesteps,
            self.attention_coding or self.coding,
            self.digits,
        )


def check_digits(digits: Digits, *codings: Coding) -> None:
    """Raise ValueError for signed digits where none of the parts of a network is phase coded."""
    if digits == "signed" and "phase" not in codings:
        raise ValueError(
            "digits: signed is for phase coding, and this network is rate coded: set coding or "
            "attention_coding to phase, or leave digits out"
        )


Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(gt=0, le=100)]


class Section(BaseModel):
    """A mapping with no unknown keys, immutable once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Calibration(Section):
    """How much text the thresholds are fitted to."""

    tokens: Annotated[int, Field(ge=2)]
    block: Annotated[int, Field(ge=2)]


class Finetune(Section):
    """Two stages, either of which may have no steps: match each layer's attention output, then the
    teacher's logits.

    Runs made before the shares were part of a recipe had those that are the default here.
    """

    match_share: Annotated[float, Field(ge=0, le=1)]
    steps: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    accumulate: Annotated[int, Field(ge=1)] = 1
    gradient_checkpointing: bool = False
    block: Annotated[int, Field(ge=2)]
    match_rate: Rate
    distil_rate: Rate
    threshold_share: Share = 3.0
    rest_share: Share = 0.3
    spikes_budget: Annotated[float, Field(gt=0, le=1)] | None = None
    train: Literal["ssa", "blocks"]
    self_written: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if self.gradient_checkpointing and self.spikes_budget is not None:
            raise ValueError(
                "gradient_checkpointing and spikes_budget do not go together: leave one out"
            )
        return self

    @property
    def blocks_a_step(self) -> int:
        """Of one process."""
        return self.batch * self.accumulate

    def changed(self, **values: object) -> Self:
        """With other values for what is given and not None. Raises UserError for one that does not
        fit."""
        given = {key: value for key, value in values.items() if value is not None}
        return checked(type(self), {**self.model_dump(), **given}, None)


class Recipe(Codes, Section):
    """One way to make a spiking network; `configs/default.yaml` explains each value."""

    timesteps: Annotated[int, Field(ge=1, le=MAX_TIMESTEPS)]
    coding: Coding = "rate"
    attention: str = "linear"  # in the reports of runs made before there was another
    attention_timesteps: Annotated[int, Field(ge=1, le=MAX_TIMESTEPS)] | None = None
    attention_coding: Coding | None = None
    digits: Digits = "binary"
    innate_first_token: bool = False  # as above
    gated_timesteps: Annotated[int, Field(ge=1, le=MAX_LIMITED_TIMESTEPS)] | None = None
    gated_spikes: Annotated[int, Field(ge=1, le=MAX_LIMITED_TIMESTEPS)] | None = None
    calibration: Calibration
    finetune: Finetune

    @field_validator("attention")
    @classmethod
    def _known(cls, attention: str) -> str:
        # the registry that is free of torch; its kinds import this file
        from neurtransformer.integer.attention import KINDS

        if attention not in KINDS:
            raise ValueError(f"must be {' or '.join(KINDS)}")
        return attention

    @model_validator(mode="after")
    def _digits_of_something(self) -> Self:
        check_digits(self.digits, self.coding, self.attention_code.coding)
        return self

    @property
    def limited(self) -> tuple[int, int] | None:
        """T and the most spikes of gated hidden neurons, if they have a code of their own."""
        if self.gated_timesteps is None or self.gated_spikes is None:
            return None
        return self.gated_timesteps, self.gated_spikes

    @classmethod
    def from_report(cls, report: dict[str, Any], run: Path) -> Self:
        """The recipe that a run was converted with. Raises UserError if its report is damaged."""
        return checked(cls, report.get("recipe"), run / "report.json")


def load_recipe(
    path: Path | None = None,
    timesteps: int | None = None,
    *,
    attention: str | None = None,
    coding: Coding | None = None,
) -> Recipe:
    """The recipe in a YAML file, or the default one. Keys left out keep their default, for the kind
    of attention chosen: `configs/<kind>.yaml`, if there is one, is put over the default.

    What is given beside the file wins. timesteps: T of the feed-forward blocks, and the most that
    the attention may have. coding: that of the whole network, at one T.
    Raises UserError for a file that is not there, is not YAML, or says what is not known.
    """
    over = {} if path is None else read_yaml(path, _DEFAULTS)
    values = settings("default.yaml", None)
    kind = attention or over.get("attention") or values["attention"]
    own = resources.files("neurtransformer.configs").joinpath(f"{kind}.yaml")
    if re.fullmatch(r"\w+", str(kind)) and own.is_file():
        _merge(values, yaml.safe_load(own.read_text(encoding="utf-8")))
    _merge(values, over)
    if attention is not None:
        values["attention"] = attention
    if coding is not None:
        values |= {"coding": coding, "attention_coding": None, "attention_timesteps": None}
    if timesteps is not None:
        values["timesteps"] = timesteps
        own_timesteps = values.get("attention_timesteps")
        if isinstance(own_timesteps, int):
            values["attention_timesteps"] = min(own_timesteps, timesteps)
    return checked(Recipe, values, path, _DEFAULTS)


def settings(default: str, path: Path | None) -> dict[str, object]:
    """What `configs/<default>` says, with what the YAML file at `path` says put over it.

    Raises UserError for a file that is not there or holds no mapping.
    """
    text = resources.files("neurtransformer.configs").joinpath(default).read_text(encoding="utf-8")
    values: dict[str, object] = yaml.safe_load(text)
    if path is not None:
        _merge(values, read_yaml(path, f"configs/{default}"))
    return values


def checked(model: type[R], values: object, path: Path | None, explained: str | None = None) -> R:
    """`values` as a `model`. explained: where it is said what settings there are.

    Raises UserError, naming `path`, for the first that does not fit.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        where = "" if path is None else f"{path}: "
        raise UserError(f"{where}{told(error, model, explained)}") from None


def read_yaml(path: Path, explained: str) -> dict[str, object]:
    """The mapping in a YAML file. explained: where it is said what such a file holds.

    Raises UserError if it cannot be read, is longer than MAX_YAML or holds no mapping.
    """
    try:
        with path.open("rb") as file:  # a device may never end
            content = file.read(MAX_YAML + 1)
        if len(content) > MAX_YAML:
            raise UserError(f"{path} has more than {MAX_YAML:,} bytes: it is no file of settings")
        values = yaml.safe_load(content.decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: name a YAML file, see {explained}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    # a ValueError: a date that is none, and what is not UTF-8
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is no readable YAML file: {shortened(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no mapping of settings: see {explained}")
    return values


def _merge(base: dict[str, object], over: dict[str, object]) -> None:
    for key, value in over.items():
        below = base.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            _merge(below, value)
        else:
            base[key] = value
