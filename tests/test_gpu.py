"""On a GPU the library does what it does on the CPU, and what was drawn there is drawn again by the same seed."""

import copy
import json
import math
import os
import sys
from dataclasses import replace

import nbformat
import numpy as np
import pytest
import torch
from checkouts import checkout, compare, numbers
from test_alignment import nine_components
from test_from_pairs import SETTINGS, Killed, close, kill_at, weights
from test_from_samples import SETTINGS as ITERATIONS
from test_from_samples import prompts_of
from test_runs import EXPECTED, RUN, SMOKE, TRAINING, entries, metrics, preflab
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from preflab import adapters, alignment, geometry
from preflab import layout as layouts
from preflab.attention import FUSED
from preflab.generation import sample
from preflab.geometry import Labelled
from preflab.hardware import Hardware, device_name
from preflab.layout import layout
from preflab.likelihood import collate, pair_log_probs
from preflab.live import Live
from preflab.methods.dpo import DPO
from preflab.methods.grpo import GRPO
from preflab.methods.ppo import PPO
from preflab.models import Lora, Shape, tiny_model, trainable
from preflab.speed import Peaks
from preflab.training.from_pairs import PairTraining, train_on_pairs
from preflab.training.from_samples import train_on_samples, trained_parameters
from preflab.training.rollout import Values, reference_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BETA = 0.3
MODELS = [("gpt_neox", 0), ("llama", 0), ("gpt_neox", 4), ("llama", 4)]
LOG_RATIOS = (2.0, 0.5, 0.0, -2.0, 0.0, 0.0, 0.0, 0.0)  # of four pairs, no two of one weight


@pytest.fixture
def exact(exact_norm, monkeypatch):
    """Models in float64 all the way: transformers takes the sines of positions in float32, and each device rounds them
    in its own way."""

    def forward(rotary, x, position_ids):
        angles = position_ids[..., None] * rotary.inv_freq.to(x)
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()

    for kind in (GPTNeoXRotaryEmbedding, LlamaRotaryEmbedding):
        monkeypatch.setattr(kind, "forward", forward)


@pytest.fixture(params=["shared", "plain"])
def rows_are(request, monkeypatch):
    """Both responses of a pair in one row, or each in a row of its own."""
    if request.param == "plain":
        monkeypatch.setattr(layouts, "_operations", lambda rows, length, width: -rows)  # never share
    return request.param


def example(policy, rows):
    """Four pairs, DPO's c on them, the parameters, and v of other responses."""
    pairs, final = (collate(some, 0, policy.device) for some in (rows[:4], rows[4:7]))
    dtype = torch.promote_types(policy.dtype, torch.float32)
    ratios = torch.tensor(LOG_RATIOS, dtype=dtype, device=policy.device)
    c, *_ = DPO(beta=BETA).weigh(ratios, pairs["completion_mask"][:, 1:])
    parameters = alignment.parameters_of(policy)
    return pairs, c, parameters, alignment.nll_gradient(policy, [final], parameters)


def g_of(policy, pairs, c, v):
    """G of every component."""
    return alignment.alignment(c, alignment.token_alignment(policy, pairs, v), nine_components(c), n=4)


def g_is_autograds(policy, rows, tolerance):
    """Compare G of every component with one backward pass for each; the tolerance is a share of the largest."""
    pairs, c, parameters, v = example(policy, rows)
    g = g_of(policy, pairs, c, v)
    scale = max(map(abs, g.values()))
    assert all(map(math.isfinite, g.values())) and scale > 0
    for name, mask in nine_components(c).items():
        direct = alignment.dot(v, alignment.loss_gradient(policy, [(pairs, c * mask)], parameters, n=4))
        assert g[name] == pytest.approx(direct, abs=tolerance * scale), name


def on_cpu(tensors):
    return {name: t.detach().cpu() for name, t in tensors.items()}


def test_auto_takes_the_gpu_and_names_it():
    assert Hardware().resolved().device == "cuda"
    assert device_name("auto") == torch.cuda.get_device_name()


# --- log-probs and gradients ----------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("architecture", "rank"), MODELS)
def test_log_probs_of_pairs_are_the_cpus(architecture, rank, dtype, tolerance, rows_are, exact, make_model, make_rows):
    rows = make_rows(6)
    on_the_cpu, on_the_gpu = (make_model(architecture, rank=rank, dtype=dtype).to(device) for device in (CPU, GPU))
    inputs = layout(collate(rows, 0, GPU), on_the_gpu).inputs
    assert ("position_ids" in inputs) == (rows_are == "shared")
    assert {t.device.type for t in inputs.values()} == {"cuda"}
    found, expected = (pair_log_probs(model, rows, 0, 4) for model in (on_the_gpu, on_the_cpu))
    for name, value in vars(found).items():  # on the CPU in float64, wherever they were computed
        torch.testing.assert_close(value, getattr(expected, name), rtol=tolerance / 100, atol=tolerance)


@pytest.mark.parametrize(("architecture", "rank"), MODELS)
def test_gradients_and_g_are_the_cpus(architecture, rank, rows_are, exact, make_model, make_rows):
    rows, found = make_rows(7), []
    for device in (GPU, CPU):
        policy = make_model(architecture, rank=rank).to(device)
        pairs, c, parameters, v = example(policy, rows)
        gradient = alignment.loss_gradient(policy, [(pairs, c)], parameters, n=4)
        found.append((on_cpu(gradient), g_of(policy, pairs, c, v)))
    (gradient, g), (expected, theirs) = found
    close(gradient, expected, rtol=0, atol=1e-8)
    assert g == pytest.approx(theirs, abs=1e-8 * max(map(abs, theirs.values())))


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_live_g_is_the_cpus(architecture, exact, make_model, make_rows, tokenizer):
    """Greedy answers, a backward pass and forward-mode passes, as a rule that follows G asks for them in training."""
    found = []
    for device in (GPU, CPU):
        policy = make_model(architecture).to(device)
        pairs, c, *_ = example(policy, make_rows(7))
        found.append(Live(1, max_new_tokens=6, size=3).look(policy, tokenizer, pairs, c, 4))
    assert found[0] == pytest.approx(found[1], abs=1e-8 * max(map(abs, found[1])))


def test_inner_products_of_gradients_are_the_cpus(exact, make_model, make_rows):
    rows, found = make_rows(8), []
    for device in (GPU, CPU):
        policy = make_model("llama", rank=2).to(device)
        parameters, reference = alignment.parameters_of(policy), make_model("llama", seed=1).to(device)
        labelled = Labelled(rows, pair_log_probs(reference, rows, 0, 8), DPO(beta=BETA), 0)
        parts, _, loss = geometry.part_gradients(labelled, policy, parameters, parts=2, batch=2, size=2)
        found.append((geometry.gram(parts, geometry.places(parameters)).cpu(), loss))
    (products, loss), (expected, theirs) = found
    torch.testing.assert_close(products, expected, rtol=0, atol=1e-8 * float(expected.abs().max()))
    assert loss == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("rank", [0, 2], ids=["full", "lora"])
def test_what_weights_have_moved_is_the_cpus_and_lies_there(rank, make_model):
    def moved(device):
        before, after = (alignment.parameters_of(make_model(rank=rank, seed=seed).to(device)) for seed in (0, 1))
        if not rank:
            return adapters.full_updates(after, before)
        return adapters.difference(*(adapters.lora_updates(state, 2 * rank, rank) for state in (after, before)))

    found, expected = moved(GPU), moved(CPU)
    assert adapters.norm(found) == pytest.approx(adapters.norm(expected), rel=1e-9)
    assert adapters.cosine(found, expected) == pytest.approx(1, abs=1e-9)  # no product of tensors of two devices


# --- training on pairs ----------------------------------------------------------------------------


@pytest.fixture
def train(make_model, make_rows, tokenizer):
    """train(device, ...): DPO on 16 pairs; its log, and the weights that it ends with."""

    def run(device, architecture="gpt_neox", rank=0, dtype=torch.float64, dropout=0.0, settings=SETTINGS, **options):
        policy = make_model(architecture, rank=rank, dtype=dtype, dropout=dropout).to(device)
        reference = make_model(architecture, dtype=dtype, seed=0 if rank else 1).to(device)
        rows = make_rows(16)
        log_probs = pair_log_probs(reference, rows, tokenizer.pad_token_id, 8)
        log = train_on_pairs(policy, tokenizer, rows, log_probs, DPO(beta=BETA), settings, seed=3, **options)
        return log, on_cpu(weights(policy))

    return run


@pytest.mark.parametrize(("architecture", "rank"), MODELS)
def test_training_ends_with_the_cpus_weights(architecture, rank, exact, train):
    (log, end), (expected, theirs) = (train(device, architecture, rank) for device in (GPU, CPU))
    assert len(log) == 4
    for one, other in zip(log, expected, strict=True):
        assert vars(one) == pytest.approx(vars(other), abs=1e-6)
    close(end, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_dropout_is_at_work_and_drawn_again_by_the_seed(dtype, train):
    plain, one, other = (train(GPU, rank=2, dtype=dtype, dropout=share) for share in (0.0, 0.3, 0.3))
    assert plain[0] != one[0] == other[0]
    close(one[1], other[1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rank", [0, 2], ids=["full", "lora"])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(rank, dtype, train, tmp_path):
    settings, checkpoint = replace(SETTINGS, weight_decay=0.1, epochs=5), tmp_path / "state.safetensors"
    how = {"rank": rank, "dtype": dtype, "dropout": 0.3, "settings": settings}
    whole, end = train(GPU, **how)
    with pytest.raises(Killed):
        train(GPU, **how, checkpoint=checkpoint, on_step=kill_at(5))
    assert checkpoint.exists()
    torch.rand(7, device=GPU)  # the global generator is elsewhere by then
    resumed, there = train(GPU, **how, checkpoint=checkpoint)
    assert resumed == whole
    close(there, end, rtol=0, atol=0)


# --- samples --------------------------------------------------------------------------------------

METHODS = {"ppo": (PPO(kl_target=0.5), 0), "grpo": (GRPO(group_size=4, kl_coefficient=0.3), 2)}
TIMED = ("sampling_seconds", "update_seconds", "samples_per_second")


@pytest.mark.parametrize(("architecture", "rank"), MODELS)
def test_greedy_responses_are_the_cpus(architecture, rank, exact, make_model, tokenizer):
    models = (make_model(architecture, rank=rank).to(device) for device in (GPU, CPU))
    found, expected = (sample(model, tokenizer, prompts_of(6), max_new_tokens=12) for model in models)
    assert found == expected


def test_samples_are_seeded_and_leave_the_gpus_generator_alone(make_model, tokenizer):
    model = make_model("llama").to(GPU)

    def draw(seed):
        return sample(model, tokenizer, prompts_of(6), max_new_tokens=12, temperature=1.0, seed=seed)

    state = torch.cuda.get_rng_state()
    first, again, other = draw(1), draw(1), draw(2)
    assert first == again and first != other
    assert torch.equal(torch.cuda.get_rng_state(), state)


def short(prompts, samples):
    """A reward of fewer different tokens. It lies on the CPU, as an oracle's does."""
    return torch.tensor([-0.3 * len(set(response)) for _, response in samples])


@pytest.fixture
def learn(make_model, tokenizer):
    """learn(method, rank, ...): training on samples on the GPU; its log, and the weights that it ends with."""

    def run(method, rank, settings=ITERATIONS, **options):
        base, policy = make_model().to(GPU).requires_grad_(False), make_model(rank=rank).to(GPU)
        values = Values(base, own_trunk=True) if method.has_values else None
        of_base = reference_of(policy, base)
        how = {"max_new_tokens": 8, "seed": 0, **options}
        log = train_on_samples(policy, values, tokenizer, prompts_of(24), of_base, short, method, settings, **how)
        return log, on_cpu(trained_parameters(policy, values))

    return run


def told(log):
    """What a log says, but for its times; as text, because NaN is not itself."""
    return [str({name: value for name, value in vars(entry).items() if name not in TIMED}) for entry in log]


@pytest.mark.parametrize(("method", "rank"), METHODS.values(), ids=METHODS)
def test_an_iteration_on_samples_is_repeatable(method, rank, learn):
    (log, end), (again, there) = (learn(method, rank, replace(ITERATIONS, iterations=1)) for _ in range(2))
    (entry,) = log
    assert math.isfinite(entry.policy_loss) and 0 < entry.grad_norm < math.inf
    assert entry.first_ratio < 1e-9
    assert told(again) == told(log)
    close(there, end, rtol=0, atol=0)


@pytest.mark.parametrize(("method", "rank"), METHODS.values(), ids=METHODS)
def test_resumed_training_on_samples_is_the_uninterrupted_one_to_the_bit(method, rank, learn, tmp_path):
    checkpoint = tmp_path / "state.safetensors"
    whole, end = learn(method, rank)
    with pytest.raises(Killed):
        learn(method, rank, checkpoint=checkpoint, on_step=kill_at(2))
    assert checkpoint.exists()
    torch.rand(7, device=GPU)
    resumed, there = learn(method, rank, checkpoint=checkpoint)
    assert told(resumed) == told(whole)
    close(there, end, rtol=0, atol=0)


# --- half precision -------------------------------------------------------------------------------


@pytest.fixture
def wide(tokenizer):
    """wide(architecture, rank, dtype): on the GPU, with heads of a real size: kernels of half precision are made for
    those."""

    def make(architecture, rank, dtype):
        base = tiny_model(Shape(architecture, 128, 2, 2, 64), tokenizer, 0).to(GPU, dtype)
        return trainable(base, Lora(rank=rank, alpha=2 * rank), 0).eval()

    return make


@pytest.mark.parametrize(("architecture", "rank"), MODELS)
def test_bfloat16_log_probs_are_near_those_of_float32(architecture, rank, wide, make_rows):
    model, rows = wide(architecture, rank, torch.bfloat16), make_rows(12)
    found, expected = (pair_log_probs(m, rows, 0, 12) for m in (model, copy.deepcopy(model).float()))
    for side in ("chosen", "rejected"):
        off = (getattr(found, side) - getattr(expected, side)) / getattr(found, f"{side}_tokens")
        assert float(off.abs().max()) < 0.05, side  # nats a token


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
def test_g_agrees_with_autograd(dtype, tolerance, rank, wide, make_rows):
    g_is_autograds(wide("llama", rank, dtype), make_rows(7), tolerance)


# --- a model of a real size -----------------------------------------------------------------------

SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def smollm2(rank):
    """The shape of SmolLM2-135M with random weights, on the GPU."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(**SMOLLM2)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=FUSED, dtype=torch.float32)
    return trainable(model.to(GPU), Lora(rank=rank, alpha=2 * rank), 0).eval()


def random_rows(n):
    """Encoded pairs of a usual length, of any words."""
    rng = np.random.default_rng(0)
    lengths = {"prompt_ids": 64, "chosen_ids": 96, "rejected_ids": 64}
    return [{part: rng.integers(3, 49152, size).tolist() for part, size in lengths.items()} for _ in range(n)]


@pytest.mark.parametrize("rank", [0, 8], ids=["full", "lora"])
def test_a_step_and_g_of_135_million_parameters(rank, tokenizer):
    model, rows, peaks = smollm2(rank), random_rows(8), Peaks(GPU)
    loop = PairTraining(batch_size=8, micro_batch_size=8, learning_rate=1e-5)
    with peaks.of("step"):
        reference = pair_log_probs(model, rows, 0, 8)
        (log,) = train_on_pairs(model, tokenizer, rows, reference, DPO(beta=BETA), loop, seed=0)
    assert log.loss == pytest.approx(math.log(2), abs=1e-2) and 0 < log.grad_norm < math.inf
    assert all(p.isfinite().all() for p in model.parameters())
    with peaks.of("G"):
        g_is_autograds(model, rows, 1e-2)
    assert 0 < max(peaks.found.values()) < 20 * 2**10  # MB


# --- whole runs -----------------------------------------------------------------------------------

NOTEBOOKS = [RUN, "02_g_dynamics", "06_forgetting_map"]
TWO_WORKERS = "two workers"


def start(root, command, name, *words, workers=1):
    """A command on the GPU, in a process that finds the packages that this one has found."""
    hardware = f"hardware={{device: cuda, workers: {workers}}}"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return preflab(root, command, name, "--profile", "smoke", "-p", hardware, *words, env=env)


def ended(*processes):
    """What processes that run at the same time have printed; all end before one that failed is shown."""
    found = [process.communicate(timeout=400) for process in processes]
    for process, (_, err) in zip(processes, found, strict=True):
        assert process.returncode == 0, err
    return [out for out, _ in found]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Checkouts with a cold run each, by notebook; one more of the first notebook, with two workers."""
    roots = {name: checkout(tmp_path_factory.mktemp("gpu")) for name in (*NOTEBOOKS, TWO_WORKERS)}
    runs = [start(roots[name], "run", name) for name in NOTEBOOKS]
    ended(*runs, start(roots[TWO_WORKERS], "run", RUN, workers=2))
    return roots


def ran_on_the_gpu(root, name):
    """Its provenance says so, and what a lecture has computed by hand is the same as the library's."""
    folder = root / "results" / "smoke" / name
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["device"] == torch.cuda.get_device_name()
    assert provenance["parameters"]["hardware"]["device"] == "cuda"
    cells = nbformat.read(folder / "notebook.ipynb", as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    lines = [line for output in outputs if output.get("name") == "stdout" for line in output.text.splitlines()]
    assert not [line for line in lines if "same" in line and "False" in line]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_smoke_run_on_the_gpu_has_a_number_wherever_the_cpus_has_one(name, smoke):
    """Not the same numbers: a GPU draws other samples. What is not finite is null, and no number."""
    ran_on_the_gpu(smoke[name], name)
    expected = json.loads((EXPECTED / f"{name}.json").read_text())
    ours, theirs = (numbers(content["metrics"]).keys() for content in (metrics(smoke[name], name), expected))
    assert theirs and theirs <= ours


def test_two_workers_share_the_gpu_and_end_with_the_numbers_of_one(smoke):
    ran_on_the_gpu(smoke[TWO_WORKERS], RUN)
    compare(metrics(smoke[TWO_WORKERS]), metrics(smoke[RUN]), SMOKE)


def test_warm_runs_end_with_the_same_numbers_and_train_nothing(smoke):
    before = {name: (metrics(smoke[name], name), entries(smoke[name])) for name in NOTEBOOKS}
    ended(*(start(smoke[name], "run", name) for name in NOTEBOOKS))
    for name, (expected, kept) in before.items():
        assert kept and entries(smoke[name]) == kept
        compare(metrics(smoke[name], name), expected, 1e-6)


def test_a_plan_measures_the_gpu_and_makes_nothing(smoke):
    kept = entries(smoke[RUN])
    (out,) = ended(start(smoke[RUN], "plan", RUN, "-p", "seeds=[5]"))
    assert "training 1,000 tokens takes" in out
    assert "memory   not estimated" in out  # of a GPU's there is no estimate
    assert entries(smoke[RUN]) == kept


@pytest.mark.soak
def test_the_other_notebooks_run_on_the_gpu(tmp_path):
    """Two minutes more, and so only with -m soak."""
    names = [name for name in TRAINING if name not in NOTEBOOKS]
    roots = {name: checkout(tmp_path / name) for name in names}
    ended(*(start(root, "run", name) for name, root in roots.items()))
    for name, root in roots.items():
        ran_on_the_gpu(root, name)
