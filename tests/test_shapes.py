"""Published shapes, random weights from a folder without any, and what measures their cost."""

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer

from preflab import likelihood, pretrained
from preflab.errors import BadInput
from preflab.likelihood import collate, token_log_probs
from preflab.models import random_model, weightless
from preflab.paths import project_root
from preflab.pretrained import fetch
from preflab.running.reading import read_yaml, resolve
from preflab.shapes import PUBLISHED
from preflab.speed import Peaks, matrix_peak, seconds
from preflab.stages.given import check_model, given_model

CPU = torch.device("cpu")
NOTEBOOK = project_root() / "notebooks" / "src" / "90_benchmarks.py"
COUNTS = {"llama-3.1-8b": 8_030_261_248, "pythia-2.8b": 2_775_208_960}


@pytest.fixture
def checkout(tmp_path, monkeypatch, tokenizer):
    """A checkout that has the tokenizer which goes with shapes, and no model."""
    monkeypatch.setattr(pretrained, "project_root", lambda: tmp_path)
    monkeypatch.setattr("preflab.stages.given.project_root", lambda: tmp_path)
    tokenizer.save_pretrained(tmp_path / "models" / "smollm2")
    return tmp_path


@pytest.fixture
def folder(tmp_path, make_model, tokenizer):
    """A tiny Llama's config and tokenizer, without weights."""
    make_model("llama").config.save_pretrained(tmp_path / "shape")
    tokenizer.save_pretrained(tmp_path / "shape")
    return tmp_path / "shape"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_the_published_number_of_parameters_and_no_weights(name, checkout):
    target = checkout / "models" / name
    assert fetch(name, target).startswith("shape and tokenizer, no weights")
    assert fetch(name, target)  # there already
    assert weightless(str(target), torch.bfloat16).num_parameters() == COUNTS[name]
    assert AutoTokenizer.from_pretrained(target).chat_template
    assert not list(target.glob("*.safetensors"))
    check_model(f"models/{name}", None, weights=False)
    with pytest.raises(BadInput, match=r"no model\.safetensors; expected safetensors"):
        check_model(f"models/{name}", None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_needs_the_tokenizer_of_smollm2_and_says_so(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "project_root", lambda: tmp_path)
    with pytest.raises(BadInput, match=r"no tokenizer in .*run first: preflab model smollm2$") as error:
        fetch(name, tmp_path / "models" / name)
    assert "\n" not in str(error.value) and not list((tmp_path / "models").iterdir())


def test_a_shape_that_is_not_there_is_one_command_away(checkout):
    with pytest.raises(BadInput, match=r"no such folder, run: preflab model llama-3\.1-8b"):
        given_model("models/llama-3.1-8b")


def test_random_weights_depend_on_the_seed_alone(folder):
    state = torch.random.get_rng_state()
    one, same, other = (random_model(str(folder), CPU, torch.float32, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
    assert random_model(str(folder), CPU, torch.bfloat16, 0).dtype == torch.bfloat16


def parameters(folder, **given):
    base = {"model": str(folder), "context": 64}
    return resolve(NOTEBOOK, {"random_weights": True, "base": base, "hardware": {"device": "cpu"}, **given}, "test")


def test_90_makes_its_model_anew_from_a_folder_without_weights(folder):
    made = parameters(folder)
    made.check_there()
    first, second = made.fresh_model(), made.fresh_model()
    assert first is not second and torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert len(made.tokenizer()) == first.config.vocab_size
    with pytest.raises(BadInput, match="not loadable"):
        parameters(folder, random_weights=False).fresh_model()
    with pytest.raises(BadInput, match=r"random_weights=True: expected a folder in base\.model"):
        parameters(folder, base={})


def test_the_sizes_of_make_gpu_are_the_published_ones():
    for file in sorted((project_root() / "params" / "gpu").glob("90_benchmarks_*.yaml")):
        values = read_yaml(file)
        assert values["random_weights"] and values["base"]["model"].removeprefix("models/") in PUBLISHED
        assert values["batch_size"] % values["micro_batch_size"] == 0


def test_operations_of_a_pass_are_two_a_weight_and_token_and_a_backward_pass_has_twice_as_many(
    folder, make_rows, monkeypatch
):
    """Chunks of logits are computed twice, and counted twice."""
    model, rows = random_model(str(folder), CPU, torch.float32, 0), make_rows(4)
    batch = collate(rows, 0, CPU)
    laid = likelihood.layout(batch, model.base_model).inputs["input_ids"].numel()
    said = int(batch["completion_mask"].sum())
    inner = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2)
    head = model.lm_head.weight.numel()

    def counted():
        counter = FlopCounterMode(display=False)
        with counter:
            token_log_probs(model, batch).sum().backward()
        return counter.flop_counts["Global"]

    products = sum(n for op, n in counted().items() if "mm" in str(op) and "bmm" not in str(op))
    assert products == 6 * (laid * inner + said * head)
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 8 * model.config.vocab_size)
    again = sum(n for op, n in counted().items() if "mm" in str(op) and "bmm" not in str(op))
    assert again == products + 2 * said * head


def test_speed_is_measured_and_a_cpu_tells_no_peak_of_memory():
    assert 1e8 < matrix_peak(CPU, torch.float32) < 1e15
    assert seconds(lambda: np.ones(10), CPU) > 0
    peaks = Peaks(CPU)
    with peaks.of("nothing"):
        pass
    assert json.dumps(peaks.found) == "{}"
