"""Parameters: one typed model per notebook, checked before anything trains.

Defaults live in the notebook's `parameters` cell and nowhere else; the models here say which names
exist, their types and ranges. papermill alone checks nothing: it runs on when a name is misspelt and
hands 1e-6 over as a string.
"""

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from preflab.errors import BadInput

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
Proportion = Annotated[float, Field(ge=0, le=1)]
Between = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
SOURCE = r"^(world|hub|files):."
Source = Annotated[str, Field(pattern=SOURCE)]
RewardKind = Literal["model", "oracle", "correct"]
PAIR_METHODS = ("dpo", "dpo_sft", "conservative_dpo", "ipo", "simpo")  # learn from pairs
SAMPLE_METHODS = ("ppo", "grpo", "rloo")  # learn from their own samples


class Arguments(TypedDict, total=False):
    """Of rules and of methods. Those of a reader's own rules may be any; `rules.try_out` tries them."""

    __pydantic_config__ = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    beta: Positive
    sft: NotNegative
    smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    margin: NotNegative
    kl_coefficient: NotNegative
    clip: Between
    gae_lambda: Proportion
    group_size: Annotated[int, Field(ge=2)]
    which: Literal["bottom", "middle", "top"]
    at: Between
    start: Proportion
    end: Proportion
    total: Positive
    shape: Literal["linear", "cosine", "step"]
    gain: Annotated[float, Field(ge=-1, le=1)]
    tau: NotNegative
    reading: Literal["keep_above", "keep_negative_above", "drop_above"]


class Parameters(BaseModel):
    """What every notebook has."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    profile: Name  # results go to results/PROFILE/NAME/
    name: Name
    device: Literal["auto", "cpu", "cuda", "mps"]
    dtype: Literal["float32", "float64", "bfloat16"]
    workers: Count

    @classmethod
    def from_notebook(cls, names: Mapping[str, Any]) -> "Parameters":
        """Check a notebook's globals right after its parameters cell: `from_notebook(globals())`.

        Any public name that is neither a parameter nor IPython's own is a misspelt parameter.
        """
        ipython = {"In", "Out", "get_ipython", "exit", "quit", "open", cls.__name__}
        values = {k: v for k, v in names.items() if not k.startswith("_") and k not in ipython}
        if any(isinstance(value, Parameters) for value in values.values()):
            raise BadInput("this kernel has run the notebook before: restart it, then run all cells")
        return cls.checked(values, "notebook parameters")

    @classmethod
    def checked(cls, values: Mapping[str, Any], where: str) -> "Parameters":
        """Raises BadInput with one line that names the key, its value and what was expected."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise BadInput(f"{where}: {_explain(error.errors()[0], cls)}") from None


class Experiment(Parameters):
    """What every notebook that trains has: data, base model, seeds. Sources are world:NAME, hub:REPO or files:PATH."""

    data: str
    revision: str | None
    train_pairs: Count
    test_pairs: Annotated[int, Field(ge=8)]
    max_new_tokens: Count
    seeds: Annotated[list[Seed], Field(min_length=1)]
    model: str
    model_revision: str | None
    sft_source: Source | None
    architecture: Literal["gpt_neox", "llama"]
    hidden_size: Annotated[int, Field(ge=8)]
    layers: Count
    heads: Count
    context: Annotated[int, Field(ge=16)]
    vocabulary: Annotated[int, Field(ge=512)]
    base_seed: Seed
    sft_steps: Count
    sft_batch_size: Count
    sft_learning_rate: Positive
    lora_rank: Annotated[int, Field(ge=0)]
    lora_alpha: Count
    lora_dropout: Share
    checkpoint_every: Count
    show_texts: bool

    def sources(self) -> list[tuple[str, str]]:
        """Every (source, objective) that pairs are taken from."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _possible(self) -> "Experiment":
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size={self.hidden_size}: expected a multiple of heads={self.heads}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: expected different numbers")
        if self.sft_source and self.model == "tiny":
            raise ValueError(
                f"sft_source={self.sft_source!r}: expected none for model='tiny', which speaks its own data"
            )
        return self


class SequentialSettings(Experiment):
    """01_sequential_settings. A setting is [source, objective, objective]."""

    settings: Annotated[dict[str, Annotated[list[str], Field(min_length=3, max_length=3)]], Field(min_length=1)]
    prompts: Count
    beta: Positive
    learning_rate: Positive
    batch_size: Count
    micro_batch_size: Count
    epochs: Count
    warmup_share: Share
    stage2_reference: Literal["base", "stage1"]
    resamples: Annotated[int, Field(ge=100)]

    def sources(self) -> list[tuple[str, str]]:
        return [(source, o) for source, *objectives in self.settings.values() for o in objectives]

    @model_validator(mode="after")
    def _settings_possible(self) -> "SequentialSettings":
        if self.batch_size > self.train_pairs:
            raise ValueError(f"batch_size={self.batch_size}: expected at most train_pairs={self.train_pairs}")
        for name, (source, *objectives) in self.settings.items():
            if not re.match(SOURCE, source):
                raise ValueError(f"settings.{name}={source!r}: expected world:NAME, hub:REPO or files:PATH")
            if objectives[0] == objectives[1]:
                raise ValueError(f"settings.{name}: both objectives are {objectives[0]!r}, expected two different ones")
        return self


class DynamicsSettings(Experiment):
    """02_g_dynamics."""

    source: Source
    objective: str
    final_source: Source | None
    final_objective: str | None
    beta: Positive
    dpo_learning_rate: Positive
    dpo_batch_size: Count
    dpo_micro_batch_size: Count
    dpo_epochs: Count
    warmup_share: Share
    weight_decay: NotNegative
    reward: RewardKind
    reward_epochs: Count
    reward_batch_size: Count
    reward_learning_rate: Positive
    label_flips: Annotated[float, Field(ge=0, le=0.5)]
    ppo_iterations: Count
    ppo_batch_size: Annotated[int, Field(ge=2)]
    ppo_minibatch_size: Count
    ppo_micro_batch_size: Count
    ppo_epochs: Count
    ppo_learning_rate: Positive
    clip: Between
    value_clip: Positive
    value_coefficient: Positive
    own_value_trunk: bool
    gae_lambda: Proportion
    kl_coefficient: NotNegative
    kl_target: Positive | None
    missing_eos_penalty: NotNegative
    dpo_measure_every: Count
    ppo_measure_every: Count
    snapshots: Literal["keep", "replay"]
    probe: Annotated[int, Field(ge=6)]
    finals: Annotated[int, Field(ge=2)]
    final_temperature: NotNegative
    nll: Literal["sum", "mean"]
    measure_batch: Count
    shown: Count

    def sources(self) -> list[tuple[str, str]]:
        return [(self.source, self.objective)]

    @model_validator(mode="after")
    def _dynamics_possible(self) -> "DynamicsSettings":
        for name in ("dpo_batch_size", "ppo_batch_size", "probe"):
            if getattr(self, name) > self.train_pairs:
                raise ValueError(f"{name}={getattr(self, name)}: expected at most train_pairs={self.train_pairs}")
        whole, part = self.ppo_batch_size, self.ppo_minibatch_size
        if whole % part:
            raise ValueError(f"ppo_batch_size={whole}: expected a multiple of ppo_minibatch_size={part}")
        if self.finals > self.test_pairs:
            raise ValueError(
                f"finals={self.finals}: expected at most test_pairs={self.test_pairs}, whose prompts they answer"
            )
        if (self.final_source is None) != (self.final_objective is None):
            raise ValueError(
                f"final_objective={self.final_objective!r}: expected one with final_source and none without"
            )
        self._check_reward("reward", self.reward)
        return self

    def _check_reward(self, key: str, reward: RewardKind | None) -> None:
        if reward in ("oracle", "correct") and not self.source.startswith("world:"):
            raise ValueError(f"{key}={reward!r}: only a world has one, expected 'model' for source={self.source!r}")


class Variant(BaseModel):
    """One way to train: a method, and a rule of `preflab.rules` for its weights, for a first share of training."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    method: Literal[*PAIR_METHODS, *SAMPLE_METHODS]
    rule: str = "plain"
    arguments: Arguments = {}  # of the rule and of the method
    until: Annotated[float, Field(gt=0, le=1)] = 1.0
    reward: RewardKind | None = None  # None: the notebook's
    live_every: Count | None = None  # updates (of pairs) or iterations (of samples) between two looks at live G
    budget: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of the updates, for what costs more than them

    @model_validator(mode="after")
    def _live_where_used(self) -> "Variant":
        if (self.rule == "adaptive") != (self.live_every is not None):
            raise ValueError(f"rule={self.rule!r} with live_every={self.live_every}: expected both 'adaptive' and it")
        return self


class VariantSettings(DynamicsSettings):
    """What notebooks that compare variants share."""

    variants: Annotated[dict[str, Variant], Field(min_length=1)]

    @model_validator(mode="after")
    def _greedy_answers(self) -> "VariantSettings":
        if self.final_temperature:
            raise ValueError(
                f"final_temperature={self.final_temperature}: expected 0.0, win rates are of greedy answers too"
            )
        for name, variant in self.variants.items():
            self._check_reward(f"variants.{name}.reward", variant.reward)
            size = variant.arguments.get("group_size", 2)
            if variant.method in ("grpo", "rloo") and self.ppo_batch_size % size:
                raise ValueError(
                    f"variants.{name}: group_size={size}, expected a divisor of ppo_batch_size={self.ppo_batch_size}"
                )
        return self


class AblationSettings(VariantSettings):
    """03_component_ablations."""

    @model_validator(mode="after")
    def _variants_possible(self) -> "AblationSettings":
        rows = list(self.variants.values())
        for method in {row.method for row in rows}:
            if sum(row.method == method and row.rule == "plain" for row in rows) != 1:
                raise ValueError(f"variants: expected one of method {method!r} with rule 'plain' to compare with")
        if all(row.rule == "plain" for row in rows):
            raise ValueError("variants: expected one with another rule than 'plain'")
        return self


class Contender(Variant):
    """A variant with the values of its own parameter that it may choose from."""

    sweep: Annotated[list[Arguments], Field(min_length=1)] = [{}]  # arguments of each candidate
    against: str | None = None  # the row it is compared with; None for those that others are compared with

    def candidates(self, given: Arguments) -> list[Variant]:
        """In the order of the sweep, whose arguments go before the row's, and those before what is `given`."""
        common = {name: getattr(self, name) for name in Variant.model_fields if name != "arguments"}
        return [Variant(arguments=given | self.arguments | own, **common) for own in self.sweep]


class CoordinationSettings(VariantSettings):
    """04_coordinated_objectives."""

    variants: Annotated[dict[str, Contender], Field(min_length=1)]
    validation: Annotated[int, Field(ge=2)]
    report: Annotated[int, Field(ge=2)]
    sweep_seeds: Count
    alpaca_eval: Source | None

    @model_validator(mode="after")
    def _contenders_possible(self) -> "CoordinationSettings":
        sizes = {name: len(row.sweep) for name, row in self.variants.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"variants: sweeps of sizes {sizes}, expected one size: equal budgets")
        if "SFT" in self.variants:
            raise ValueError("variants.SFT: expected another name, this is the SFT model's")
        for name, row in self.variants.items():
            rival = self.variants.get(row.against) if row.against else None
            if row.against and (rival is None or rival.against):
                known = ", ".join(n for n, other in self.variants.items() if other.against is None)
                raise ValueError(f"variants.{name}.against={row.against!r}: expected one of: {known}")
        if (needed := self.finals + self.validation + self.report) > self.test_pairs:
            raise ValueError(f"test_pairs={self.test_pairs}: expected at least finals + validation + report = {needed}")
        if self.sweep_seeds > len(self.seeds):
            raise ValueError(f"sweep_seeds={self.sweep_seeds}: expected at most the {len(self.seeds)} seeds")
        return self


class Benchmarks(Parameters):
    """90_benchmarks."""

    architecture: Literal["gpt_neox", "llama"]
    hidden_size: Annotated[int, Field(ge=8)]
    layers: Count
    heads: Count
    context: Annotated[int, Field(ge=16)]
    lora_rank: Annotated[int, Field(ge=0)]
    batch_size: Count
    samples: Annotated[int, Field(ge=4, multiple_of=2)]
    max_new_tokens: Count
    steps: Count
    turns: Count


MODELS = {
    "01_sequential_settings": SequentialSettings,
    "02_g_dynamics": DynamicsSettings,
    "03_component_ablations": AblationSettings,
    "04_coordinated_objectives": CoordinationSettings,
    "90_benchmarks": Benchmarks,
}


def _explain(error: Mapping[str, Any], cls: type[BaseModel]) -> str:
    key, value, kind = ".".join(map(str, error["loc"])), error.get("input"), error["type"]
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "extra_forbidden" and len(error["loc"]) > 1:
        return f"{key}={value!r}: no such parameter"
    if kind == "extra_forbidden":
        return f"{key}={value!r}: no such parameter, expected one of: {', '.join(sorted(cls.model_fields))}"
    if kind == "missing":
        return f"{key}: missing"
    hint = ""
    if isinstance(value, str) and (number := re.fullmatch(r"([+-]?\d+)(\.\d+)?[eE]([+-]?)(\d+)", value)):
        whole, fraction, sign, exponent = number.groups()
        hint = f" (text in YAML; write {whole}{fraction or '.0'}e{sign or '+'}{exponent} without quotes)"
    return f"{key}={value!r}: {error['msg'][0].lower() + error['msg'][1:]}{hint}"


# --- notebooks and YAML -------------------------------------------------------------------------


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice; PyYAML would keep the last and say nothing."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise BadInput(f"line {key_node.start_mark.line + 1}: key {key!r}, expected text")
            if key in seen:
                raise BadInput(f"line {key_node.start_mark.line + 1}: key {key!r} is given twice, expected once")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises BadInput naming file and line for anything else."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not readable as YAML: {error}") from None
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise BadInput(f"{path}: expected a mapping of parameter names to values")
    return values


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML text stands for. Raises BadInput that begins with `where`."""
    try:
        return yaml.load(text, _UniqueKeys)  # a SafeLoader
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{where}: not readable as YAML: {' '.join(str(error).split())}") from None


def defaults(notebook: Path) -> dict[str, Any]:
    """The values in a notebook's parameters cell, read without running it."""
    import jupytext  # slow to import, and no notebook or worker process reads others

    cells = jupytext.read(notebook).cells
    source = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    assignments = [node for node in ast.parse(source).body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    return {
        (node.target if isinstance(node, ast.AnnAssign) else node.targets[0]).id: ast.literal_eval(node.value)
        for node in assignments
    }


def resolve(notebook: Path, given: Mapping[str, Any], where: str) -> Parameters:
    """A notebook's parameters: `given` over its own defaults, checked. Raises BadInput."""
    return MODELS[notebook.stem].checked({**defaults(notebook), **given}, where)
