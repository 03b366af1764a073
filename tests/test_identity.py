"""A stage's identity: everything that decides its content is in it, and nothing else is."""

import importlib
import json
import pkgutil
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch

import preflab
from preflab.experiments.two_stages import Setting
from preflab.hardware import Hardware
from preflab.live import Live
from preflab.methods import METHODS
from preflab.methods.dpo import DPO
from preflab.methods.ipo import IPO
from preflab.methods.method import PairMethod, SampleMethod
from preflab.methods.ppo import PPO
from preflab.models import Lora, save_model
from preflab.paths import project_root
from preflab.rules import RULES, Plain, SameTotal, Until, WithoutNegative
from preflab.running import identity as identities
from preflab.running.cache import Cache
from preflab.running.code import package
from preflab.running.identity import described, identity, key
from preflab.running.reading import read_yaml, resolve
from preflab.settings import INCIDENTAL
from preflab.stages.alignment import Alignment, Learnt, Measurement
from preflab.stages.answers import AnswersStage, Texts
from preflab.stages.base import Base, BaseSettings
from preflab.stages.common_mode import CommonMode
from preflab.stages.course import GradientCourse
from preflab.stages.data import Joined, Pairs, PairSource, Prompts, Relabelled
from preflab.stages.drawn import Own
from preflab.stages.drawn_answers import DrawnAnswers
from preflab.stages.evaluation import Evaluation, ScoredAlong
from preflab.stages.given import Dequantised
from preflab.stages.gradients import FirstGradients
from preflab.stages.optimised import OptimiserSteps, TrainingWithSGD
from preflab.stages.probe import PairsProbe, SamplesProbe
from preflab.stages.reference import ReferenceLogProbs
from preflab.stages.reward import ClosedRewardStage, RewardStage
from preflab.stages.snapshots import Snapshots
from preflab.stages.stage import Stage, keep_in
from preflab.stages.training import TrainingFromPairs, TrainingFromSamples, TrainingOnTop
from preflab.training.from_pairs import PairTraining
from preflab.training.from_samples import SampleTraining
from preflab.training.reward import RewardSettings
from preflab.training.sft import SFTSettings
from preflab.weightings import Weights as TokenWeights
from preflab.weights import Weights

SOURCE = Path(preflab.__file__).parent
NOTEBOOKS = {path.stem: path for path in (project_root() / "notebooks" / "src").glob("*.py")}


@pytest.fixture(autouse=True)
def store(tmp_path_factory):
    """One cache for the module: what one test trained the next may load."""
    keep_in(Cache(tmp_path_factory.getbasetemp() / "identity"))


# --- every kind of stage, tiny --------------------------------------------------------------------

BASE = Base(
    BaseSettings(hidden_size=16, layers=1, heads=2, sft=SFTSettings(steps=60, batch_size=16, learning_rate=1e-2)),
    Hardware("cpu", "float64", 1),
    "answers",
)
PAIRS = PairSource("world:conflict", "helpful", None, 32, 14)
TRAIN, TEST = PAIRS.train_pairs(0), PAIRS.test_pairs
OTHER_TRAIN = PAIRS.train_pairs(1)
LORA = Lora(rank=2, alpha=4)
LOOP = PairTraining(learning_rate=3e-3, batch_size=8, micro_batch_size=8, checkpoint_every=2)
SAMPLE_LOOP = SampleTraining(iterations=2, batch_size=8, minibatch_size=4, micro_batch_size=8, checkpoint_every=1)
LIVE = Live(1, 4, 8)
ORACLE = RewardStage(BASE, "oracle", TRAIN, 16)
REWARD = RewardStage(BASE, "model", TRAIN, 16, RewardSettings(epochs=1, label_flips=0.25), LORA)
METHOD_ARGUMENTS = {"simpo": {"margin": 0.5}, "dpo_sft": {"sft": 0.1}, "conservative_dpo": {"smoothing": 0.1}} | {
    name: {"group_size": 2} for name in ("grpo", "rloo")
}
RULE_ARGUMENTS = {
    "only_tertile": {"which": "top"},
    "without_tertile": {"which": "top"},
    "adaptive": {"gain": 0.5},
    "while_sign": {"part": "negative"},
    "thresholded": {"tau": 0.5, "reading": "keep_above"},
}


def method(name):
    return METHODS[name](**METHOD_ARGUMENTS.get(name, {}))


def rule(name):
    return RULES[name](**RULE_ARGUMENTS.get(name, {}))


PLAIN_DPO, PLAIN_PPO = DPO(), PPO()


def from_pairs(of=PLAIN_DPO, **other):
    given = dict(base=BASE, pairs=TRAIN, seed=0, lora=Lora(rank=0), method=of, loop=LOOP, order=0)
    return TrainingFromPairs(**given | other)


def from_samples(of=PLAIN_PPO, **other):
    given = dict(base=BASE, pairs=TRAIN, seed=0, lora=Lora(rank=0), method=of, loop=SAMPLE_LOOP, reward=ORACLE)
    return TrainingFromSamples(**given | {"max_new_tokens": 8} | other)


def answers(training):
    return AnswersStage(BASE, training, Prompts(PAIRS, 0, 4), 8, 0.0, 4)


def aligned(training, steps, **other):
    probe = PairsProbe(6) if isinstance(training, TrainingFromPairs) else SamplesProbe(6)
    return Alignment(training, answers(training), TEST, steps, probe, "sum", 5, 1, True, **other)


STAGE1 = from_pairs(lora=LORA)
STAGE2 = replace(STAGE1, pairs=OTHER_TRAIN, order=2, start=STAGE1, reference="start")
CORPUS = replace(BASE, corpus=(TRAIN,))
STAGES = {
    "base": BASE,
    "base of a corpus": CORPUS,
    "reference": ReferenceLogProbs(BASE, TRAIN),
    "reward model": REWARD,
    "oracle": ORACLE,
    "closed reward": ClosedRewardStage(BASE, "model", TRAIN, 16, RewardSettings(epochs=1), LORA),
    "correctness": RewardStage(BASE, "correct", TRAIN, 16),
    "implicit reward": RewardStage(BASE, "implicit", TRAIN, 16, implicit=from_pairs(DPO(beta=0.6))),
    "stage 1": STAGE1,
    "stage 2": STAGE2,
    **{name: from_pairs(method(name)) for name, kind in METHODS.items() if issubclass(kind, PairMethod)},
    **{name: from_samples(method(name)) for name, kind in METHODS.items() if issubclass(kind, SampleMethod)},
    **{f"dpo, {name}": from_pairs(rule=rule(name), live=LIVE) for name in RULES},
    "dpo, cut short": from_pairs(rule=Until(0.5, rule("only_tertile")), updates=3),
    "dpo, same total": from_pairs(rule=SameTotal(rule("without_negative"))),
    "ppo, adaptive": from_samples(rule=rule("adaptive"), live=LIVE, reward=REWARD),
    "snapshots": Snapshots(from_pairs(), (0, 1, 4)),
    "snapshots of samples": Snapshots(from_samples(), (0, 4)),
    "answers": answers(from_pairs()),
    "answers of the base": answers(None),
    "optimiser": OptimiserSteps(from_pairs(), answers(from_pairs()), (0, 2), "sum", 4),
    "common mode": CommonMode(
        from_samples(),
        Snapshots(from_samples(), (0, 4)),
        (("greedy", answers(from_samples())),),
        ((0, (Own(),)),),
        (),
        4,
        8,
        "sum",
        4,
    ),
    "drawn answers": DrawnAnswers(BASE, Snapshots(from_pairs(), (0, 4)), Prompts(PAIRS, 0, 4), 2, 8, 4),
    "drawn answers of the base": DrawnAnswers(BASE, None, Prompts(PAIRS, 0, 4), 2, 8, 4),
    "texts": Texts(BASE, from_pairs(), ("how do i fix the old lamp at home ?",), 4, 4),
    "alignment": aligned(from_pairs(), (0, 2, 4)),
    "alignment of samples": aligned(from_samples(PPO(own_value_trunk=False)), (0, 4, 8)),
    "alignment of groups": aligned(from_samples(method("grpo")), (0, 4, 8)),
    "replayed alignment": aligned(from_samples(), (0, 4, 8), replay=True),
    "learnt": Learnt(from_pairs()),
    "both at once": from_pairs(pairs=Joined((TRAIN, OTHER_TRAIN))),
    "labels by a coin": from_pairs(pairs=Relabelled(TRAIN, 0)),
    "on top": TrainingOnTop(**{name: getattr(STAGE2, name) for name in STAGE2.__dataclass_fields__}),
    "scored along": ScoredAlong(Snapshots(from_pairs(), (0, 1)), TEST),
    "evaluation": Evaluation(BASE, STAGE2, (TEST, replace(PAIRS, objective="harmless").test_pairs), 2, 8),
    "course": GradientCourse(
        Snapshots(from_pairs(), (0, 1, 4)),
        *(ReferenceLogProbs(BASE, some) for some in (TRAIN, OTHER_TRAIN, TEST)),
        4,
        8,
    ),
    "evaluation of the base": Evaluation(BASE, None, (TEST,), 2, 8),
    "first gradients": FirstGradients(
        BASE, LORA, 0, DPO(), tuple(ReferenceLogProbs(BASE, some) for some in (TRAIN, OTHER_TRAIN)), 4, 8
    ),
}


def found_in_the_package(kind):
    module = sys.modules[kind.__module__]
    return getattr(module, kind.__name__, None) if module.__name__.startswith("preflab.") else None


def below(kind):
    return {kind, *(inner for sub in kind.__subclasses__() for inner in below(sub))}


def test_every_kind_of_stage_and_every_method_and_rule_is_tried_here():
    import preflab.stages

    for module in pkgutil.iter_modules(preflab.stages.__path__, "preflab.stages."):
        importlib.import_module(module.name)
    abstract = {"Stage", "Training"}
    ours = {kind for kind in below(Stage) if kind.__name__ not in abstract and kind is found_in_the_package(kind)}
    needs_a_file, refuses_rules = Dequantised, TrainingWithSGD  # see below
    assert {type(stage) for stage in STAGES.values()} | {needs_a_file, refuses_rules} == ours
    trained = [stage for stage in STAGES.values() if hasattr(stage, "rule")]
    assert {type(stage.method) for stage in trained} == set(METHODS.values())
    assert {type(stage.rule) for stage in trained} == {*RULES.values(), Until, SameTotal}


# --- soundness at run time ------------------------------------------------------------------------
# A stage is built with every call recorded. Whatever the package does in it must lie in the code that its identity
# has a hash of. What may be called besides cannot decide a number, or its result is in the identity itself.

CANNOT_DECIDE = {
    "preflab.stages.data": {  # data are read before: what these return is fingerprinted
        *("Pairs", "Pairs.rows", "PairSource", "PairSource.load", "PairSource.test_pairs"),
        *("Joined", "Joined.rows", "Relabelled", "Relabelled.rows"),
        *("PairSource.utility", "PairSource.world", "world_of"),  # the objective's weights are in the fingerprint
    },
    "preflab.data.worlds.named": {"get_world"},
    "preflab.files": {"sha256"},  # the cache's, of what is made
    "preflab.data.worlds.objectives": {"World", "World.objective", "World.language"},
}
KEEPERS = ("preflab.running.",)  # the cache and identities themselves


def place(code):
    """Module and qualified name of a code object; None outside the package."""
    file = Path(code.co_filename)
    if not file.is_relative_to(SOURCE):
        return None
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(["preflab", *(part for part in parts if part != "__init__")]), code.co_qualname


def called_in(call):
    """Every function of the package that is called, and every class of it whose instances or methods are used."""
    found = set()

    def note(frame, event, _):
        code = frame.f_code
        here = place(code)
        if here:
            found.add(here)
        if (here or code.co_name in ("__init__", "__new__")) and code.co_argcount:
            first = frame.f_locals.get(code.co_varnames[0])
            kind = first if isinstance(first, type) else type(first)
            if kind.__module__.startswith("preflab."):
                found.add((kind.__module__, kind.__qualname__))

    sys.settrace(note)
    try:
        call()
    finally:
        sys.settrace(None)
    return found


def hashed_in(stage, monkeypatch):
    """Every place whose text is in the stage's identity, or in that of a stage above it."""
    things, real = [], identities.code_of
    with monkeypatch.context() as patched:
        patched.setattr(identities, "code_of", lambda thing: things.append(thing) or real(thing))
        identity.cache_clear()
        key(stage)
    return set().union(*(package().reach(thing.__module__, thing.__qualname__) for thing in things))


def forget():
    """Let the package compute anew what it keeps for a process, but for the data."""
    for name, module in list(sys.modules.items()):
        if name.startswith("preflab.") and not name.startswith(KEEPERS):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear") and value.__name__ != "_load":
                    value.cache_clear()


SLOW_TWINS = {"dpo, " + name for name in RULES} - {"dpo, adaptive"} | {"conservative_dpo", "dpo_sft", "ipo", "simpo"}


@pytest.mark.parametrize("name", [name for name in STAGES if name not in SLOW_TWINS])
def test_what_a_build_calls_is_in_its_identity(name, monkeypatch, tmp_path):
    stage = STAGES[name]
    _ = BASE.folder, REWARD.folder  # the slow libraries are imported then
    hashed = hashed_in(stage, monkeypatch)
    forget()
    called = called_in(lambda: stage.build(tmp_path))
    assert len(called) > 20
    missed = {
        (module, name)
        for module, name in called
        if (module, name.partition(".")[0]) not in hashed
        and name not in CANNOT_DECIDE.get(module, ())
        and not module.startswith(KEEPERS)
    }
    assert not missed


@pytest.mark.parametrize("name", sorted(SLOW_TWINS))
def test_what_a_method_or_rule_calls_is_in_its_identity(name, monkeypatch):
    """Those whose training differs from another's in nothing else."""
    stage = STAGES[name]
    hashed = hashed_in(stage, monkeypatch)
    mask = torch.ones(4, 3)

    def weigh():
        c, *_ = stage.method.weigh(-torch.rand(4), mask)
        stage.rule(TokenWeights.of_pairs(c, 0.5, (0.1, 0.2)))

    called = called_in(weigh)
    assert len(called) > 2 and not {(m, n) for m, n in called if (m, n.partition(".")[0]) not in hashed}


def test_what_tuning_a_named_model_on_dialogues_calls_is_in_its_identity(monkeypatch, tmp_path, make_model, tokenizer):
    """And what reads dialogues, whose content has no fingerprint."""
    save_model(make_model(dtype=torch.float64), tokenizer, tmp_path / "named")
    turns = [("user", "how do i fix the old lamp at home ?"), ("assistant", "use the wire .")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (tmp_path / "chat.jsonl").write_text("\n".join([json.dumps(row)] * 8))
    sft = SFTSettings(steps=2, batch_size=4)
    settings = BaseSettings(model=str(tmp_path / "named"), sft_source=f"files:{tmp_path / 'chat.jsonl'}", sft=sft)
    stage = replace(BASE, settings=settings)
    hashed = hashed_in(stage, monkeypatch)
    (tmp_path / "built").mkdir()
    called = called_in(lambda: stage.build(tmp_path / "built"))
    assert ("preflab.data.dialogues", "dialogues") in called
    assert not {(m, n) for m, n in called if (m, n.partition(".")[0]) not in hashed and not m.startswith(KEEPERS)}


def test_what_a_gguf_becomes_a_folder_with_is_in_the_identity_of_the_base_on_it(monkeypatch, tmp_path, make_gguf):
    stage = replace(BASE, settings=BaseSettings(model="given"), given=Dequantised(Weights(make_gguf()[0])))
    hashed = hashed_in(stage, monkeypatch)
    monkeypatch.setattr("preflab.progress._sinks", [])  # whoever listened in this process before
    called = called_in(lambda: stage.given.build(tmp_path))
    assert ("preflab.dequantise", "dequantise") in called
    missed = {(m, n) for m, n in called if (m, n.partition(".")[0]) not in hashed}
    assert not missed


def test_the_recording_sees_functions_classes_methods_and_closures():
    called = called_in(lambda: from_pairs().loop and Setting("a", "b", ("c", "c")).repeats)
    assert ("preflab.experiments.two_stages", "Setting.repeats") in called
    assert {("preflab.stages.training", "TrainingFromPairs"), ("preflab.experiments.two_stages", "Setting")} <= called


# --- every field counts ---------------------------------------------------------------------------

INCIDENTALS = {
    ("Hardware", "workers"),
    ("PairTraining", "checkpoint_every"),
    ("PairTraining", "activation_checkpointing"),
    ("SampleTraining", "checkpoint_every"),
    ("Alignment", "replay"),
    ("Measurement", "snapshots"),
}
DATA = (Pairs, Prompts, Joined, Relabelled)
OTHER = {  # another value for what is None, free text, data, or bound to other fields
    ("BaseSettings", "hidden_size"): 32,
    ("BaseSettings", "heads"): 4,
    ("BaseSettings", "model"): "another/model",
    ("BaseSettings", "revision"): "abc",
    ("BaseSettings", "sft_source"): "files:dialogues",
    ("Base", "corpus"): (OTHER_TRAIN,),
    ("Base", "given"): Weights(SOURCE / "data"),  # any folder
    ("RewardStage", "training"): RewardSettings(),
    ("RewardStage", "lora"): LORA,
    ("RewardStage", "implicit"): from_pairs(DPO(beta=0.7)),
    ("ClosedRewardStage", "implicit"): from_pairs(DPO(beta=0.7)),
    ("SampleMethods", "kl_target"): 1.0,
    ("TrainingFromPairs", "live"): Live(2, 4, 8),
    ("TrainingFromPairs", "updates"): 2,
    ("TrainingFromPairs", "start"): from_pairs(DPO(beta=0.7)),
    ("TrainingOnTop", "live"): Live(2, 4, 8),
    ("TrainingOnTop", "updates"): 2,
    ("TrainingFromSamples", "live"): Live(2, 4, 8),
    ("AnswersStage", "training"): from_pairs(DPO(beta=0.7)),
    ("Evaluation", "training"): from_pairs(DPO(beta=0.7)),
    ("Texts", "asked"): ("another question",),
    ("Alignment", "nll"): "mean",
    ("Base", "language"): "guides",
    ("Snapshots", "steps"): (0, 3),
    ("Alignment", "steps"): (0, 1, 2),
    ("OptimiserSteps", "steps"): (0, 1),
    ("OptimiserSteps", "nll"): "mean",
    ("CommonMode", "nll"): "mean",
    ("CommonMode", "finals"): (("sampled", answers(from_samples())),),
    ("CommonMode", "plan"): ((4, (Own(),)),),
    ("CommonMode", "apart"): ("temperature 1",),
    ("Evaluation", "held_out"): (TEST, TEST),
    ("FirstGradients", "pairs"): (ReferenceLogProbs(BASE, OTHER_TRAIN), ReferenceLogProbs(BASE, TRAIN)),
    ("kl_target",): 1.0,
    ("size",): 0.5,
}


def paths(value):
    """Every field of a stage, and of the settings, method and rule in it, as a tuple of fields from the stage down."""
    for field in fields(value):
        yield (field,)
        inner = getattr(value, field.name)
        if is_dataclass(inner) and not isinstance(inner, (Stage, *DATA)):
            yield from ((field, *rest) for rest in paths(inner))


def set_at(value, path, new):
    field, *rest = path
    return replace(value, **{field.name: set_at(getattr(value, field.name), rest, new) if rest else new})


def owner_of(value, path):
    for field in path[:-1]:
        value = getattr(value, field.name)
    return value


def another(owner, field):
    """Another value that the field can have."""
    value = getattr(owner, field.name)
    for known in ((type(owner).__name__, field.name), (field.name,)):
        if known in OTHER and OTHER[known] != value:
            return OTHER[known]
    if choices := [inner for inner in choices_of(field.type) if inner != value]:
        return choices[0]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 if value else 0.25
    if isinstance(value, Prompts):
        return replace(value, stop=value.stop + 1)
    if isinstance(value, Pairs):
        return replace(value, stop=value.stop - 1 if value.stop else 10)
    if isinstance(value, PairMethod):
        return IPO() if not isinstance(value, IPO) else DPO()
    if isinstance(value, SampleMethod):
        return PPO() if not isinstance(value, PPO) else METHODS["rloo"]()
    if field.name == "rule":
        return WithoutNegative() if not isinstance(value, WithoutNegative) else Plain()
    if field.name == "probe":
        return SamplesProbe(6) if isinstance(value, PairsProbe) else PairsProbe(6)
    path = next(path for path in paths(value) if not any(f.metadata.get(INCIDENTAL) for f in path))
    return set_at(value, path, another(owner_of(value, path), path[-1]))  # a stage or settings


def test_plain_descent_is_another_run_than_adams():
    ours, other = (TrainingWithSGD(BASE, TRAIN, seed, Lora(rank=0), PLAIN_DPO, LOOP, order=0) for seed in (0, 1))
    assert len({identity(ours), identity(other), identity(from_pairs())}) == 3


def choices_of(hint):
    if get_origin(hint) is Literal:
        return get_args(hint)
    return [choice for inner in get_args(hint) for choice in choices_of(inner)]


def fields_of_all():
    """One case for each field of each class, the first stage that has it."""
    seen = {}
    for name, stage in STAGES.items():
        for path in paths(stage):
            owner = owner_of(stage, path)
            seen.setdefault((type(owner).__name__, path[-1].name, type(stage).__name__), (name, path))
    return [pytest.param(*case, id=".".join([stage, *(f.name for f in case[1])])) for (*_, stage), case in seen.items()]


@pytest.mark.parametrize(("name", "path"), fields_of_all())
def test_another_value_of_a_field_is_another_stage_unless_the_field_is_incidental(name, path):
    stage = STAGES[name]
    owner = owner_of(stage, path)
    new = another(owner, path[-1])
    changed = set_at(stage, path, new)
    assert changed != stage
    incidental = (type(owner).__name__, path[-1].name) in INCIDENTALS
    assert (identity(changed) == identity(stage)) == incidental, (new, getattr(owner, path[-1].name))


def test_what_is_incidental_is_named_here():
    """Of these alone: how often a state is written down, how many work side by side, whether weights are kept."""
    kinds = {type(owner_of(stage, path)) for stage in STAGES.values() for path in paths(stage)} | {Measurement}
    marked = {(kind.__name__, f.name) for kind in kinds for f in fields(kind) if f.metadata.get(INCIDENTAL)}
    assert marked == INCIDENTALS


def test_no_two_of_many_stages_are_the_same():
    different = set(STAGES.values())
    assert len({identity(stage) for stage in different}) == len(different) > 40


def test_the_class_counts_and_not_the_fields_alone():
    assert identity(from_pairs(METHODS["kto"](beta=0.1))) != identity(from_pairs(METHODS["ipo"](beta=0.1)))
    assert identity(from_pairs(rule=rule("without_negative"))) != identity(from_pairs(rule=rule("without_positive")))


@pytest.mark.parametrize("name", ["stage 2", "ppo, adaptive", "alignment", "evaluation"])
def test_other_code_of_anything_that_is_hashed_makes_another_stage(name, monkeypatch):
    stage, things, real = STAGES[name], set(), identities.code_of
    with monkeypatch.context() as patched:
        patched.setattr(identities, "code_of", lambda thing: things.add(thing) or real(thing))
        identity.cache_clear()
        before = identity(stage)
    own = {Base, BaseSettings, SFTSettings, Hardware, type(stage)}
    assert (
        own <= things
        and {type(field) for field in (getattr(stage, f.name) for f in fields(stage))}
        - {*(int, str, bool, float, tuple, type(None))}
        <= things
    )
    for changed in things:
        with monkeypatch.context() as patched:
            patched.setattr(
                identities, "code_of", lambda thing, changed=changed: "other" if thing is changed else real(thing)
            )
            identity.cache_clear()
            assert identity(stage) != before, changed
    identity.cache_clear()


def test_other_libraries_make_another_stage(monkeypatch):
    found = {identity(BASE)}
    for name in identities.LIBRARIES:
        other = identities.library_versions() | {name: "0"}
        with monkeypatch.context() as patched:
            patched.setattr(identities, "library_versions", lambda other=other: other)
            found.add(identities.digest(key(BASE)))
    assert len(found) == 1 + len(identities.LIBRARIES)
    assert {"torch", "transformers", "tokenizers", "trl", "peft", "numpy", "scipy"} <= set(identities.LIBRARIES)
    assert key(BASE)["versions"].keys() == set(identities.LIBRARIES)


def test_what_has_no_stable_form_is_refused():
    with pytest.raises(TypeError, match="set: expected a dataclass or a JSON value"):
        described({1})
    with pytest.raises(TypeError, match="PosixPath"):
        identity(replace(BASE, corpus=(Path("x"),)))


def test_an_identity_is_plain_json_and_does_not_depend_on_the_order_of_keys():
    assert json.loads(json.dumps(key(STAGE2))) == key(STAGE2)
    assert identities.digest({"a": [1, {"b": 2, "c": 3}]}) == identities.digest({"a": [1, {"c": 3, "b": 2}]})
    assert identities.digest({"a": 1}) != identities.digest({"a": "1"}) != identities.digest({"a": 1, "b": None})


# --- data count by what they hold -----------------------------------------------------------------


def write(path, pairs):
    path.write_text(
        "\n".join(json.dumps(dict(zip(("prompt", "chosen", "rejected"), pair, strict=True))) for pair in pairs)
    )
    return path


ROWS = [(f"question {i} ?", "yes .", f"no {i} .") for i in range(60)]


def test_data_count_by_content_whatever_the_file_is_called(tmp_path):
    def trained(name, rows, **given):
        source = PairSource(f"files:{write(tmp_path / name, rows)}", "default", **given)
        return identity(from_pairs(pairs=source.train_pairs(0)))

    one = trained("a.jsonl", ROWS)
    assert trained("b.jsonl", ROWS) == one == trained("c.jsonl", ROWS, revision="abc")
    assert trained("d.jsonl", [*ROWS[:-1], (ROWS[-1][0], "yes !", ROWS[-1][2])]) != one
    assert trained("e.jsonl", ROWS[::-1]) != one  # the order of rows is that of batches
    assert trained("f.jsonl", ROWS, train=20) != one


def test_a_world_counts_by_its_pairs_and_its_oracle(monkeypatch):
    """Another oracle that labels the same: the pairs' hash is the same, and rewards are others."""
    from preflab.data.worlds import World
    from preflab.stages import data

    before, world = identity(from_samples()), data.get_world("conflict")
    objective = replace(world.objective("helpful"), hazard_weights={"faults": 0.0})
    monkeypatch.setattr(data, "get_world", lambda name: World("conflict", (objective, world.objective("harmless"))))
    identity.cache_clear()
    assert identity(from_samples()) != before
    monkeypatch.undo()
    identity.cache_clear()
    assert identity(from_samples()) == before


def test_pairs_differ_by_seed_and_range_and_held_out_ones_by_neither_seed(tmp_path):
    def of(pairs):
        return identity(ReferenceLogProbs(BASE, pairs))

    different = [TRAIN, OTHER_TRAIN, TEST, replace(TRAIN, stop=10), replace(TRAIN, start=10), replace(TRAIN, start=1)]
    assert len({of(pairs) for pairs in different}) == len(different)
    assert of(replace(TRAIN, start=0, stop=32)) == of(TRAIN)  # the same pairs
    assert of(replace(TEST, seed=1)) == of(TEST)
    assert of(replace(PAIRS, test=12).train_pairs(0)) == of(TRAIN)  # how many are held out is no matter of these


def test_prompts_count_by_their_content_and_their_range():
    def of(prompts):
        return identity(replace(answers(None), prompts=prompts))

    ranges = [Prompts(PAIRS, *ends) for ends in ((0, 4), (1, 4), (0, 5))]
    elsewhere = [
        Prompts(replace(PAIRS, objective="harmless"), 0, 4),
        Prompts(replace(PAIRS, source="world:safety", objective="safer"), 0, 4),
    ]
    assert len({of(prompts) for prompts in ranges + elsewhere}) == 5


def test_a_base_counts_by_what_it_learns_to_speak_from(tmp_path):
    def base(name, rows):
        source = PairSource(f"files:{write(tmp_path / name, rows)}", "default")
        return identity(replace(BASE, corpus=(source.train_pairs(0),)))

    assert base("a.jsonl", ROWS) == base("b.jsonl", ROWS) != base("c.jsonl", ROWS[:-5]) != identity(BASE)


# --- how often G is measured is no part of how a run was trained ----------------------------------

SIZES = {"train_pairs": 32, "test_pairs": 14, "max_new_tokens": 8, "seeds": [0, 1]}
EQUAL = {
    **SIZES,
    "hardware": {"device": "cpu", "dtype": "float64", "workers": 1},
    "source": "world:conflict",
    "base": {
        "architecture": "gpt_neox", "hidden_size": 16, "layers": 1, "heads": 2, "context": 64,
        "sft": {"steps": 10, "batch_size": 16, "learning_rate": 4e-3},
    },
    "ppo": {"kl_coefficient": 0.05},
    "pair_training": {"batch_size": 8, "micro_batch_size": 8, "epochs": 1, "learning_rate": 3e-4},
    "sample_training": {"iterations": 8, "batch_size": 8, "minibatch_size": 4, "learning_rate": 1e-3},
    "reward": {"kind": "model", "epochs": 1},
    "measurement": {"checkpoints": 4, "probe": 6, "finals": 4, "batch": 5, "shown": 1},
}  # fmt: skip
PLAIN = {name.upper(): {"method": name} for name in ("dpo", "ppo")}
OF = {
    "02_g_dynamics": {},
    "03_component_ablations": {
        "variants": PLAIN | {"x": {"method": "dpo", "rule": "equal_weights"}},
        "outcome": {"path_prompts": 2},
    },
    "04_coordinated_objectives": {"variants": PLAIN, "validation": 4, "report": 5},
}


def parameters(name, **given):
    return resolve(NOTEBOOKS[name], {**EQUAL, **OF[name], **given}, "test")


def plain(p):
    """The plain runs of a notebook, as it asks for them: {(method, seed): stage}."""
    if hasattr(p, "plain_candidates"):
        planned = [run for some in p.plain_candidates().values() for run in some.runs]
    else:
        planned = [run for run in p.planned() if run.row.rule == "plain" and run.row.repeats == 1]
    return {(run.row.method, run.seed): run.training for run in planned}


MEASURED = {
    "checkpoints": 5,
    "probe": 8,
    "finals": 6,
    "final_temperature": 1.0,
    "nll": "mean",
    "batch": 7,
    "shown": 2,
    "detail": False,
    "snapshots": "replay",
}


def test_every_parameter_of_measurement_is_tried_here():
    assert set(MEASURED) == {f.name for f in fields(Measurement)}


@pytest.mark.parametrize("name", MEASURED)
def test_how_g_is_measured_decides_no_training_and_every_alignment(name):
    p = parameters("02_g_dynamics")
    other = parameters("02_g_dynamics", measurement=EQUAL["measurement"] | {name: MEASURED[name]})
    assert getattr(p.measurement, name) != getattr(other.measurement, name)
    for ours, theirs in zip(plain(p).values(), plain(other).values(), strict=True):
        assert identity(ours) == identity(theirs)
        same = name == "snapshots"
        assert (identity(p.alignment(ours)) == identity(other.alignment(theirs))) == same


def test_notebooks_02_03_and_04_share_their_plain_runs():
    p2, p3, p4 = (parameters(name) for name in OF)
    for of, seed in (("dpo", 0), ("ppo", 0)):
        stages = [plain(p)[of, seed] for p in (p2, p3, p4)]
        assert stages[0] == stages[1] == stages[2]
        assert len({identity(stage) for stage in stages}) == 1
    assert plain(p2)["dpo", 1] == plain(p3)["dpo", 1]


def test_the_full_profile_shares_its_plain_runs():
    """What was trained in notebook 02 is not trained in 03, 04, 08 and 09."""
    folder = project_root() / "params" / "full"
    names = (*OF, "08_optimisers", "09_common_mode")
    sources = (project_root() / "notebooks" / "src" / f"{name}.py" for name in names)
    p2, p3, p4, p8, p9 = (
        resolve(file, read_yaml(folder / f"{name}.yaml"), name) for file, name in zip(sources, names, strict=True)
    )
    of_dpo, of_ppo = (identity(plain(p2)[method, 0]) for method in ("dpo", "ppo"))
    assert [identity(plain(p)["dpo", 0]) for p in (p3, p9)] == [of_dpo] * 2 and identity(p8.adam(0)) == of_dpo
    assert [identity(plain(p)["ppo", 0]) for p in (p3, p9)] == [of_ppo] * 2
    dpo, ppo = ({identity(run.training) for run in p4.plain_candidates()[name].runs} for name in ("DPO", "PPO"))
    assert of_dpo in dpo and of_ppo in ppo


# --- what every parameter of a notebook decides ---------------------------------------------------

AFTER = {  # what is made of what
    "base": {"reward", "dpo", "ppo", "answers", "answers of SFT", "G of dpo", "G of ppo", "learnt"},
    "reward": {"ppo", "G of ppo"},
    "dpo": {"answers", "G of dpo", "learnt"},
    "ppo": {"G of ppo"},
    "prompts": {"answers", "answers of SFT", "G of dpo", "G of ppo"},
    "G": {"G of dpo", "G of ppo"},
}
PARAMETERS = {  # of notebook 02: another value, and what it makes other
    ("profile", "x"): set(),
    ("name", "02_g_dynamics_x"): set(),
    ("data", "x"): set(),
    ("revision", "x"): set(),
    ("show_texts", False): set(),
    ("seeds", (0, 2)): set(),  # of seed 0, which is looked at here
    ("tuning_seeds", (100,)): set(),
    ("beyond_gates", True): set(),
    ("source", "world:compatible"): {"reward", "dpo", "ppo", "prompts"},
    ("objective", "harmless"): {"reward", "dpo", "ppo", "prompts"},
    ("final_source", "world:conflict"): {"prompts"},
    ("final_objective", "harmless"): {"prompts"},
    ("train_pairs", 40): {"reward", "dpo", "ppo"},
    ("test_pairs", 16): {"prompts"},
    ("pairs_per_prompt", 1): set(),  # a world has one pair a prompt
    ("test_share", 0.5): set(),  # a world draws its own splits
    ("max_new_tokens", 9): {"reward", "ppo", "prompts"},
    ("hardware.device", "auto"): set(),
    ("hardware.dtype", "float32"): {"base"},
    ("hardware.workers", 2): set(),
    ("hardware.scoring", "bfloat16"): {"base"},
    ("base.architecture", "llama"): {"base"},
    ("base.hidden_size", 32): {"base"},
    ("base.layers", 2): {"base"},
    ("base.heads", 4): {"base"},
    ("base.context", 63): {"base"},
    ("base.model", "x/y"): {"base"},
    ("base.revision", "x"): {"base"},
    ("base.sft_source", "files:x"): {"base"},
    ("base.vocabulary", 999): {"base"},
    ("base.seed", 1): {"base"},
    ("base.sft.steps", 11): {"base"},
    ("base.sft.batch_size", 17): {"base"},
    ("base.sft.learning_rate", 1e-3): {"base"},
    ("lora.rank", 2): {"reward", "dpo", "ppo"},
    ("lora.alpha", 2): {"reward", "dpo", "ppo"},
    ("lora.dropout", 0.1): {"reward", "dpo", "ppo"},
    ("dpo.beta", 0.2): {"dpo"},
    **{(f"ppo.{name}", value): {"ppo"} for name, value in {
        "clip": 0.1, "kl_coefficient": 0.1, "kl_target": 1.0, "missing_eos_penalty": 2.0, "value_clip": 0.1,
        "value_coefficient": 0.2, "own_value_trunk": False, "gamma": 0.9, "gae_lambda": 0.9,
    }.items()},
    **{(f"pair_training.{name}", value): {"dpo"} for name, value in {
        "learning_rate": 1e-3, "batch_size": 4, "micro_batch_size": 4, "epochs": 2, "warmup_share": 0.1,
        "weight_decay": 0.1, "adam_beta2": 0.99, "max_grad_norm": 2.0,
    }.items()},
    ("pair_training.checkpoint_every", 1): set(),
    ("pair_training.activation_checkpointing", True): set(),
    **{(f"sample_training.{name}", value): {"ppo"} for name, value in {
        "iterations": 3, "batch_size": 16, "minibatch_size": 8, "micro_batch_size": 8, "epochs": 1,
        "learning_rate": 1e-4, "warmup_share": 0.1, "max_grad_norm": 2.0,
    }.items()},
    ("sample_training.checkpoint_every", 1): set(),
    **{(f"reward.{name}", value): {"reward"} for name, value in {
        "kind": "oracle", "epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "label_flips": 0.1,
    }.items()},
    ("measurement.checkpoints", 5): {"G"},
    ("measurement.probe", 7): {"G"},
    ("measurement.finals", 5): {"prompts"},
    ("measurement.final_temperature", 1.0): {"prompts"},
    ("measurement.nll", "mean"): {"G"},
    ("measurement.batch", 6): {"prompts"},
    ("measurement.shown", 2): {"G"},
    ("measurement.detail", False): {"G"},
    ("measurement.snapshots", "replay"): set(),
}  # fmt: skip
TOGETHER = {  # values that the first one needs beside it
    "source": {"objective": "truthfulness"},
    "final_source": {"final_objective": "harmless"},
    "final_objective": {"final_source": "world:conflict"},
    "base.sft_source": {"base.model": "x/y"},
}


def with_value(given, name, value):
    key, _, rest = name.partition(".")
    return given | {key: with_value(given.get(key, {}), rest, value) if rest else value}


def with_values(given, name, value):
    for other, beside in {name: value, **TOGETHER.get(name, {})}.items():
        given = with_value(given, other, list(beside) if isinstance(beside, tuple) else beside)
    return given


def stages_of_dynamics(p):
    dpo, ppo = plain(p)["dpo", 0], plain(p)["ppo", 0]
    return {
        "base": p.base_model,
        "reward": p.reward_stage(),
        "dpo": dpo,
        "ppo": ppo,
        "answers": p.answers_stage(dpo),
        "answers of SFT": p.answers_stage(None),
        "G of dpo": p.alignment(dpo),
        "G of ppo": p.alignment(ppo),
        "learnt": p.learnt(dpo),
    }


def test_every_parameter_of_notebook_02_is_tried_here():
    refused_by_worlds = {"reward.own_share", "reward.judge_share"}  # test_dynamics has them
    assert {name for name, _ in PARAMETERS} == set(parameters("02_g_dynamics").values()) - refused_by_worlds


@pytest.mark.parametrize(("name", "value"), PARAMETERS, ids=[name for name, _ in PARAMETERS])
def test_a_parameter_of_notebook_02_decides_what_it_says_and_nothing_else(name, value):
    before = stages_of_dynamics(parameters("02_g_dynamics"))
    after = stages_of_dynamics(resolve(NOTEBOOKS["02_g_dynamics"], with_values(EQUAL, name, value), "test"))
    changed = {which for which in before if identity(before[which]) != identity(after[which])}
    assert changed == with_what_follows(PARAMETERS[name, value]) & set(before)


def with_what_follows(named):
    following = named.union(*(AFTER.get(which, set()) for which in named))
    return following if following == named else with_what_follows(following)


SEQUENTIAL = {
    **{key: EQUAL[key] for key in (*SIZES, "hardware", "base", "pair_training")},
    "prompts": 2,
    "resamples": 100,
    "lora": {"rank": 2, "alpha": 4},
    "settings": {"conflict": ["world:conflict", "helpful", "harmless"]},
}
BOTH = {"stage 1", "stage 2", "evaluation 1", "evaluation 2"}
EVALUATIONS = {"evaluation of the base", "evaluation 1", "evaluation 2"}
SEQUENTIAL_PARAMETERS = {
    ("resamples", 101): set(),
    ("show_texts", False): set(),
    ("train_pairs", 40): BOTH,
    ("test_pairs", 16): EVALUATIONS,
    ("prompts", 3): EVALUATIONS,
    ("max_new_tokens", 9): EVALUATIONS,
    ("stage2_reference", "stage1"): {"stage 2", "evaluation 2"},
    ("dpo.beta", 0.2): BOTH,
    ("lora.rank", 3): BOTH,
    ("pair_training.epochs", 2): BOTH,
    ("pair_training.checkpoint_every", 3): set(),
    ("base.seed", 1): {"base", *BOTH, *EVALUATIONS},
    ("settings.conflict", ("world:conflict", "harmless", "helpful")): BOTH | EVALUATIONS,
}


def stages_of_sequential(p):
    (setting,) = p.all_settings()
    both = setting.objectives
    return {
        "base": p.base_model,
        "stage 1": p.training(setting, both[:1], 0),
        "stage 2": p.training(setting, both, 0),
        "evaluation of the base": p.evaluation(setting, (), 0),
        "evaluation 1": p.evaluation(setting, both[:1], 0),
        "evaluation 2": p.evaluation(setting, both, 0),
    }


@pytest.mark.parametrize(("name", "value"), SEQUENTIAL_PARAMETERS, ids=[name for name, _ in SEQUENTIAL_PARAMETERS])
def test_a_parameter_of_notebook_01_decides_what_it_says_and_nothing_else(name, value):
    source = NOTEBOOKS["01_sequential_settings"]
    before = stages_of_sequential(resolve(source, SEQUENTIAL, "test"))
    after = stages_of_sequential(resolve(source, with_values(SEQUENTIAL, name, value), "test"))
    changed = {which for which in before if identity(before[which]) != identity(after[which])}
    assert changed == SEQUENTIAL_PARAMETERS[name, value]


# --- nothing trains twice -------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """The runs that are trained, as they are trained, from an empty cache."""
    from preflab.stages import training

    keep_in(Cache(tmp_path / "cache"))
    calls = []
    for name in ("train_on_pairs", "train_on_samples"):
        real = getattr(training, name)
        monkeypatch.setattr(
            training, name, lambda *a, real=real, name=name, **how: calls.append(name) or real(*a, **how)
        )
    return calls


def test_a_run_that_was_trained_for_its_snapshots_is_not_trained_again(trained):
    """G first, then what the final policy answers and what it has learnt, then another notebook: one training each."""
    p = parameters("02_g_dynamics")
    for run, loop in ((plain(p)["dpo", 0], "train_on_pairs"), (plain(p)["ppo", 0], "train_on_samples")):
        trained.clear()
        p.alignment(run).load()
        assert trained == [loop]
        p.learnt(run).load(), p.answers_stage(run).load(), run.load(), p.alignment(run).snapshots.load()
        plain(parameters("04_coordinated_objectives"))[run_of(run), 0].load()
        with run.final_policy():
            pass
        assert trained == [loop]


def run_of(training):
    return "dpo" if isinstance(training, TrainingFromPairs) else "ppo"


def test_other_snapshots_train_once_more_and_leave_the_run_alone(trained):
    p = parameters("02_g_dynamics")
    run = plain(p)["dpo", 0]
    Snapshots(run, (0, 4)).load()
    manifest = (run.folder / "manifest.json").stat()
    Snapshots(run, (0, 2, 4)).load()
    assert trained == ["train_on_pairs"] * 2
    assert (run.folder / "manifest.json").stat() == manifest


def test_a_candidate_that_is_chosen_is_not_trained_again(trained):
    p = parameters("04_coordinated_objectives")
    run = p.plain_candidates()["DPO"].runs[0]
    for stage in p.tried_stages(run):
        _ = stage.folder
    chosen = p.chosen_of(p.plain_candidates()["DPO"])
    assert chosen[0].training == run.training
    for stage in p.final_stages(chosen[0]):
        _ = stage.folder
    assert trained == ["train_on_pairs"]


def test_a_plain_run_and_one_that_looks_at_g_are_told_apart_by_how_it_looks():
    adaptive = {"method": "dpo", "rule": "adaptive", "live_every": 1, "arguments": {"gain": 0.5}}
    rows = PLAIN | {"x": adaptive}
    short, long = (parameters("04_coordinated_objectives", variants=rows, max_new_tokens=n) for n in (4, 8))
    for name, differs in (("DPO", False), ("x", True)):
        ours, theirs = (p.plain_candidates()[name].runs[0].training for p in (short, long))
        assert (identity(ours) != identity(theirs)) == differs


# --- seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF)
def test_two_seeds_differ_in_pairs_adapters_order_and_samples_and_in_nothing_else(name):
    p = parameters(name, lora={"rank": 2, "alpha": 4})
    for row in PLAIN:
        variant = p.rows()[row]
        variant = variant.candidates({})[0] if hasattr(variant, "candidates") else variant
        zero, one = (p.training(variant, seed) for seed in (0, 1))
        different = {f.name for f in fields(zero) if getattr(zero, f.name) != getattr(one, f.name)}
        assert different == ({"pairs", "seed", "order"} if variant.from_pairs else {"pairs", "seed"})
        assert (zero.seed, one.seed) == (0, 1) and (zero.pairs.seed, one.pairs.seed) == (0, 1)
        assert identity(zero) != identity(one)
        assert identity(zero.base) == identity(one.base)
        assert zero.pairs.rows().to_list() != one.pairs.rows().to_list()
        assert zero.pairs.of.test_pairs.rows().to_list() == one.pairs.of.test_pairs.rows().to_list()
        assert identity(ReferenceLogProbs(zero.base, zero.pairs)) != identity(ReferenceLogProbs(one.base, one.pairs))
        for first, second in ((p.answers_stage(zero), p.answers_stage(one)), (p.alignment(zero), p.alignment(one))):
            assert identity(first) != identity(second)
        assert p.answers_stage(zero).prompts == p.answers_stage(one).prompts
        assert p.alignment(zero).held_out == p.alignment(one).held_out == p.pairs.test_pairs
        if not variant.from_pairs:
            assert zero.reward == one.reward and zero.reward.pairs.seed == 0
