"""What a run would cost: what is to make, its counts, its memory, and that a plan makes nothing."""

import json
import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from preflab.errors import BadInput
from preflab.models import Lora, trainable, weightless
from preflab.paths import project_root
from preflab.planning import fit, memory, pace, plan
from preflab.planning.work import Work, everything, kinds, to_make, tokens, work_of
from preflab.running import run
from preflab.running.cli import app
from preflab.running.reading import resolve
from preflab.stages.evaluation import Evaluation
from preflab.stages.reference import ReferenceLogProbs
from preflab.stages.stage import keep_in
from preflab.stages.training import TrainingFromPairs
from preflab.tokenizers import bpe_tokenizer

SOURCES = project_root() / "notebooks" / "src"
WORDS = ["how", "do", "i", "fix", "the", "old", "lamp", "at", "home", "use", "wire", "then", "test", "it", "well"]


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with a tiny random Llama and rated replies, and parameters of notebook 01 that name both."""
    folder, draw = tmp_path_factory.mktemp("there"), random.Random(0)
    text = [" ".join(draw.choices(WORDS, k=n)) for n in range(4, 34)]
    tokenizer = bpe_tokenizer(text, 300)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"intermediate_size": 64, "max_position_embeddings": 96, "vocab_size": len(tokenizer)}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    LlamaForCausalLM(LlamaConfig(**shape, **ends)).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    prompts = [f"{text[n % len(text)]} {n}" for n in range(60) for _ in range(3)]
    rows = [{"response": draw.choice(text), "kind": draw.random(), "brief": draw.random()} for _ in prompts]
    (folder / "own.jsonl").write_text(
        "\n".join(json.dumps({"prompt": p, **row}) for p, row in zip(prompts, rows, strict=True))
    )
    (folder / "01_sequential_settings.yaml").write_text(json.dumps(given(folder)))
    return folder


def given(folder, **over):
    return {
        "profile": "own", "data": str(folder), "settings": {"own": ["files:own.jsonl", "kind", "brief"]},
        "train_pairs": 24, "test_pairs": 8, "prompts": 2, "max_new_tokens": 6, "seeds": [0],
        "hardware": {"device": "cpu", "workers": 1}, "base": {"model": str(folder / "llama"), "context": 96},
        "pair_training": {"batch_size": 8, "micro_batch_size": 4}, "lora": {"rank": 2, "alpha": 4},
    } | over  # fmt: skip


def parameters(folder, notebook="01_sequential_settings", **over):
    return resolve(SOURCES / f"{notebook}.py", given(folder, **over), "test")


class Held:
    """A store that holds what it is told, and makes nothing."""

    def __init__(self, *stages):
        self.stages = stages

    def holds(self, stage):
        return stage in self.stages

    def folder(self, stage):
        raise AssertionError(f"a plan makes {stage}")


def told(p):
    return {kind.name: (kind.there, len(kind.to_make)) for kind in kinds(p.stages())}


# --- what is to make ------------------------------------------------------------------------------


def test_a_plan_lists_what_a_run_makes_and_makes_nothing(there):
    keep_in(Held())
    p = parameters(there)
    assert told(p) == {"Evaluation": (0, 5), "ReferenceLogProbs": (0, 2), "TrainingFromPairs": (0, 4)}
    order = to_make(p.stages())
    assert all(order.index(s.start) < order.index(s) for s in order if getattr(s, "start", None))


def test_what_is_there_is_not_to_make_nor_is_what_only_it_was_made_from(there):
    p = parameters(there)
    stages = everything(p.stages())
    evaluations = [s for s in stages if isinstance(s, Evaluation)]
    keep_in(Held(*evaluations))
    assert told(p) == {"Evaluation": (5, 0), "ReferenceLogProbs": (0, 0), "TrainingFromPairs": (0, 0)}
    last = next(e for e in evaluations if e.training and e.training.start)
    keep_in(Held(*[e for e in evaluations if e != last]))
    assert told(p) == {"Evaluation": (4, 1), "ReferenceLogProbs": (0, 2), "TrainingFromPairs": (0, 2)}
    keep_in(Held(*[s for s in stages if s != last]))
    assert to_make(p.stages()) == [last]


def test_pairs_tokens_and_passes_are_counted_on_the_encoded_pairs(there):
    keep_in(Held())
    p = parameters(there, pair_training={"batch_size": 7, "micro_batch_size": 7, "epochs": 2})
    training = next(s for s in to_make(p.stages()) if isinstance(s, TrainingFromPairs))
    rows = training.pairs.encoded(training.base)
    sides = sum(len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in rows)
    assert len(rows) == 24 and tokens(rows) == sides
    seen = 2 * 21  # two epochs of three whole batches of 7
    assert work_of(training) == Work(pairs=seen, trained=round(sides * seen / 24), passes=seen * 2 * 3)
    reference = ReferenceLogProbs(training.base, training.pairs)
    assert work_of(reference) == Work(pairs=24, scored=sides, passes=48)
    evaluation = work_of(p.stages()[0])
    assert (evaluation.pairs, evaluation.passes, evaluation.rounds) == (16, 2 * 16 + 2 * 2, 2)


def test_a_kind_without_an_estimate_says_so(there):
    keep_in(Held())
    own = {k: v for k, v in given(there).items() if k not in ("settings", "prompts")}
    small = {"sample_training": {"batch_size": 8, "minibatch_size": 8}, "measurement": {"probe": 8, "finals": 4}}
    given_ = own | small | {"source": "files:own.jsonl", "objective": "kind"}
    p = resolve(SOURCES / "02_g_dynamics.py", given_, "test")
    found = {kind.name: kind for kind in kinds(p.stages())}
    assert {"Alignment", "Snapshots", "AnswersStage", "TrainingFromSamples", "RewardStage"} < set(found)
    assert [name for name, kind in found.items() if kind.work] == ["ReferenceLogProbs", "TrainingFromPairs"]
    lines = list(plan.Plan(list(found.values()), 1, None, None, None, None, pace.Pace(trained=1.0)).lines())
    assert next(line for line in lines if line.startswith("Alignment")).endswith("not estimated")
    assert "AnswersStage" in lines[-1] and "not estimated" in lines[-1]


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 4])
def test_shapes_alone_tell_what_autograd_keeps(there, rank):
    """Beside the same model with its weights: the meta device's attention keeps a little more."""
    name, lora = str(there / "llama"), Lora(rank=rank, alpha=8)
    bare = trainable(weightless(name, torch.float32), lora, 0).train()
    real = trainable(LlamaForCausalLM.from_pretrained(name), lora, 0).train()
    sizes = [[(n, p.shape, p.requires_grad) for n, p in model.named_parameters()] for model in (bare, real)]
    assert sizes[0] == sizes[1] and {p.device.type for p in bare.parameters()} == {"meta"}
    assert memory.kept_of_a_token(bare) == pytest.approx(memory.kept_of_a_token(real), rel=0.15)


def test_pythia_is_counted_too(make_model):
    real = make_model("gpt_neox", rank=4, dtype=torch.float32).train()
    assert memory.kept_of_a_token(real) == pytest.approx(memory.kept_of_a_token(real.to("meta")), rel=0.2)


def test_an_architecture_that_cannot_be_counted_has_no_estimate_of_memory(there, with_free, monkeypatch):
    def fails(policy):
        raise RuntimeError("Tensor.item() cannot be called on meta tensors")

    memory.shape_of.cache_clear()
    monkeypatch.setattr(memory, "kept_of_a_token", fails)
    monkeypatch.setattr(plan, "measure", lambda stages: pace.Pace(trained=1.0))
    with_free(1)
    keep_in(Held())
    p = parameters(there)
    fit.check_memory(p)
    lines = list(plan.plan(p).lines())
    assert [line.split(" about ")[0] for line in lines[4:]] == ["memory   not estimated", "time    "]


def test_checkpointing_smaller_micro_batches_and_adapters_need_less(there):
    keep_in(Held())

    def need(lora=None, **loop):
        loop = {"batch_size": 8, "micro_batch_size": 8, **loop}
        return memory.needed(to_make(parameters(there, pair_training=loop, lora=lora or {"rank": 2}).stages()))

    plain = need()
    assert need(micro_batch_size=2).training < plain.training / 2
    assert need(activation_checkpointing=True).training < plain.training
    full = need(lora={"rank": 0})
    assert full.state > 10 * plain.state and full.weights > plain.weights
    n = LlamaForCausalLM.from_pretrained(there / "llama").num_parameters()
    assert (full.weights, full.state) == (2 * 4 * n, 3 * 4 * n)


def test_the_longest_micro_batch_is_of_the_longest_pairs():
    rows = [{"prompt_ids": [1] * n, "chosen_ids": [1], "rejected_ids": [1, 2]} for n in (3, 9, 1, 7)]
    assert [len(row["prompt_ids"]) for row in memory.longest(rows, 2)] == [9, 7]


@pytest.fixture
def with_free(monkeypatch):
    """with_free(bytes): so much memory is free, and a process has a megabyte before it loads a model."""
    for module in (memory, fit):
        monkeypatch.setattr(module, "resident", lambda: 10**6)

    def make(free):
        for module in (fit, plan):
            monkeypatch.setattr(module, "free_memory", lambda: free)

    return make


def test_a_run_that_does_not_fit_says_which_parameter_helps(there, with_free):
    keep_in(Held())
    own = {"batch_size": 24, "micro_batch_size": 24}
    stages = to_make(parameters(there, pair_training=own).stages())
    enough = memory.needed(stages).total
    for free, expected in (
        (enough, None),
        (enough - 1, "it fits with pair_training={activation_checkpointing: true}"),
        (1, "no setting of pair_training helps, expected a smaller model or more memory"),
    ):
        with_free(free)
        line = fit.shortage(stages, 1)
        assert line is expected or (line.startswith("memory: about ") and line.endswith(expected))
    with_free(2 * enough - 1)
    assert fit.shortage(stages, 1) is None and fit.shortage(stages, 2)
    with_free(None)
    assert fit.shortage(stages, 1) is None, "nobody knows what is free"


def test_a_smaller_micro_batch_is_advised_where_checkpointing_is_on(there, with_free):
    keep_in(Held())

    def stages(size):
        own = {"batch_size": 24, "micro_batch_size": size, "activation_checkpointing": True}
        return to_make(parameters(there, pair_training=own).stages())

    with_free(memory.needed(stages(16)).total)
    assert fit.shortage(stages(24), 1).endswith("it fits with pair_training={micro_batch_size: 16}")
    assert fit.shortage(stages(16), 1) is None


def test_a_notebook_starts_only_if_it_fits(there, with_free, monkeypatch, tmp_path):
    """Through the very call that every notebook begins with; worlds' tiny models are not even counted."""
    monkeypatch.setattr(run, "results_root", lambda: tmp_path)
    monkeypatch.setattr(run, "share_cores", lambda *_: None)
    with_free(1)
    with pytest.raises(BadInput, match=r"^memory: about .* needed, .* there; no setting"):
        run.start(parameters(there))
    assert not list(tmp_path.rglob("*model*"))
    run.start(resolve(SOURCES / "01_sequential_settings.py", {}, "test"))
    with_free(10**12)
    run.start(parameters(there))


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def command(there, monkeypatch, tmp_path):
    """command(...): the lines of `preflab plan`, its error, its exit code; and the folder of its cache."""
    from preflab.running import cli

    monkeypatch.setattr(pace, "SECONDS", 0.0)
    monkeypatch.setattr("preflab.hardware.share_cores", lambda *_: None)
    monkeypatch.setattr(cli.paths, "results_root", lambda: tmp_path / "results")

    def call(*words):
        result = CliRunner().invoke(app, ["plan", *words])
        return result.stdout.splitlines(), result.stderr, result.exit_code

    return call


def test_the_command_tells_stages_memory_and_time_and_leaves_nothing(there, command, tmp_path):
    lines, error, code = command(str(there / "01_sequential_settings.yaml"), "-p", "seeds=[0, 1]")
    assert (error, code) == ("", 0)
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["Evaluation", "0", "9"], ["ReferenceLogProbs", "0", "4"], ["TrainingFromPairs", "0", "8"]
    ]  # fmt: skip
    assert all(line.endswith((" s", " min")) for line in lines[1:4])
    assert [line.split()[0] for line in lines[4:]] == ["model", "memory", "time"]
    assert not list(tmp_path.glob("results/cache/*"))


def test_the_command_refuses_what_does_not_fit_without_measuring(there, command, with_free, monkeypatch):
    with_free(1)
    monkeypatch.setattr(plan, "measure", lambda stages: pytest.fail("measured"))
    lines, error, code = command(str(there / "01_sequential_settings.yaml"))
    assert code == 2 and error.startswith("error: memory: about ") and error.count("\n") == 1
    assert lines[3].endswith("not estimated") and not lines[-1].startswith("time")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nothing"], "params/default/nothing.yaml: no such file"),
        (["nowhere/01_sequential_settings.yaml"], "nowhere/01_sequential_settings.yaml: no such file"),
        (["90_benchmarks"], "90_benchmarks: makes no stages, expected a notebook that trains"),
        (["01_sequential_settings", "-p", "train_pairs=0"], "-p: train_pairs=0: input should be greater"),
    ],
)
def test_the_command_refuses_bad_words_in_one_line(command, words, expected):
    lines, error, code = command(*words)
    assert (lines, code) == ([], 2)
    assert error.startswith(f"error: {expected}") and error.count("\n") == 1


def test_a_base_model_that_is_not_there_is_all_that_a_plan_knows(command):
    lines, error, code = command("01_sequential_settings", "--profile", "smoke")
    assert (error, code) == ("", 0)
    assert [line.split() for line in lines[1:]] == [
        ["Base", "0", "1", "not", "estimated"],
        ["memory", "not", "estimated"],
    ]


def test_the_measurement_leaves_the_base_model_as_it_is(there, monkeypatch):
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    keep_in(Held())
    stages = to_make(parameters(there).stages())
    model = stages[0].base.load()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = pace.measure(stages)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert None not in vars(found).values()
    assert found.seconds(Work(trained=3, scored=2, rounds=1)) == pytest.approx(
        3 * found.trained + 2 * found.scored + found.answers
    )
