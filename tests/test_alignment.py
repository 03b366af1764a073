"""G against independent derivatives: one backward pass per component, finite differences, a case by hand."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from preflab import alignment, weightings
from preflab.errors import BadInput
from preflab.likelihood import collate, token_log_probs
from preflab.methods.dpo import DPO
from preflab.weightings import surrogate

BETA = 0.3


def masked_nll(model, batch):
    """NLL of responses, written again: a loop over rows and tokens."""
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    total = 0.0
    for row in range(len(logits)):
        for t in range(1, logits.shape[1]):
            if batch["completion_mask"][row, t]:
                total = total - F.log_softmax(logits[row, t - 1], -1)[batch["input_ids"][row, t]]
    return total


@pytest.fixture(params=["gpt_neox", "llama"])
def case(request, make_model, make_rows, exact_norm):
    """A policy off its reference, a batch of pairs, D' from the other pairs' chosen responses, c."""

    def build(dtype, lora):
        policy, rows = make_model(request.param, rank=lora, dtype=dtype), make_rows(7)
        pairs = collate(rows[:4], 0, torch.device("cpu"))
        final = {k: t[:3] for k, t in collate(rows[4:7], 0, torch.device("cpu")).items()}
        with torch.no_grad():
            ratios = token_log_probs(policy, pairs).sum(1) + torch.linspace(-2, 2, 8, dtype=dtype)
        c, *_ = DPO(beta=BETA).weigh(ratios, pairs["completion_mask"][:, 1:])
        return policy, pairs, final, c

    return build


def nine_components(c):
    pairs = c.abs().amax(1)[: len(c) // 2]  # w of each pair
    thirds = weightings.tertile_components(pairs, torch.ones_like(pairs, dtype=torch.bool))
    by_pair = {name: torch.cat([m, m])[:, None].expand_as(c) for name, m in thirds.items()}
    some = torch.rand(c.shape, generator=torch.Generator().manual_seed(0)).to(c.device) < 0.5
    return {**weightings.sign_components(c), **by_pair, "mask": some, "other": ~some}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("lora", [0, 4], ids=["full", "lora"])
def test_agrees_with_one_backward_pass_per_component(case, dtype, tolerance, lora):
    policy, pairs, final, c = case(dtype, lora)
    parameters = alignment.parameters_of(policy)
    v = alignment.nll_gradient(policy, [final], parameters)
    found = alignment.alignment(c, alignment.token_alignment(policy, pairs, v), nine_components(c), n=4)

    target = torch.autograd.grad(masked_nll(policy, final) / 3, list(parameters.values()))
    scale = max(map(abs, found.values()))
    for name, mask in nine_components(c).items():
        loss = surrogate(c * mask, token_log_probs(policy, pairs)) / 4
        gradient = torch.autograd.grad(loss, list(parameters.values()))
        direct = sum(float((g.double() * t.double()).sum()) for g, t in zip(gradient, target, strict=True))
        assert found[name] == pytest.approx(direct, abs=tolerance * scale), name


def test_components_add_up_to_the_whole(case):
    policy, pairs, final, c = case(torch.float64, 0)
    v = alignment.nll_gradient(policy, [final], alignment.parameters_of(policy))
    g = alignment.alignment(c, alignment.token_alignment(policy, pairs, v), nine_components(c), n=4)
    for split in (("positive", "negative"), ("bottom", "middle", "top"), ("mask", "other")):
        assert sum(g[name] for name in split) == pytest.approx(g["whole"], rel=1e-12)


def test_predicts_the_change_of_a_small_step(case):
    """A step of gradient descent of size eta lowers the NLL of D' by eta * G."""
    policy, pairs, final, c = case(torch.float64, 0)
    parameters = alignment.parameters_of(policy)
    v = alignment.nll_gradient(policy, [final], parameters)
    g = alignment.alignment(c, alignment.token_alignment(policy, pairs, v), nine_components(c), n=4)["whole"]
    moved, eta = copy.deepcopy(policy), 1e-4
    gradient = torch.autograd.grad(surrogate(c, token_log_probs(policy, pairs)) / 4, list(parameters.values()))
    with torch.no_grad():
        for p, step in zip(alignment.parameters_of(moved).values(), gradient, strict=True):
            p.sub_(eta * step)
    change = alignment.mean_nll(moved, [final]) - alignment.mean_nll(policy, [final])
    assert change == pytest.approx(-eta * g, rel=0.05)


def test_does_not_depend_on_how_data_are_cut_into_batches(case):
    policy, pairs, final, _ = case(torch.float64, 4)
    parameters = alignment.parameters_of(policy)
    whole = alignment.nll_gradient(policy, [final], parameters)
    cut = alignment.nll_gradient(policy, [{k: t[i : i + 1] for k, t in final.items()} for i in range(3)], parameters)
    for name in whole:
        assert torch.allclose(whole[name], cut[name], atol=1e-12)
    s = alignment.token_alignment(policy, pairs, whole)
    halves = [
        alignment.token_alignment(policy, {k: t[r] for k, t in pairs.items()}, whole) for r in (range(4), range(4, 8))
    ]
    assert torch.allclose(s, torch.cat(halves), atol=1e-12)
    assert not s[pairs["completion_mask"][:, 1:] == 0].any()


def test_mean_nll_weighs_each_response_by_its_length(case):
    policy, _, final, _ = case(torch.float64, 0)
    parameters = alignment.parameters_of(policy)
    rows = [{k: t[i : i + 1] for k, t in final.items()} for i in range(3)]
    lengths = [row["completion_mask"][:, 1:].sum() for row in rows]
    assert len(set(map(int, lengths))) > 1
    by_hand = [alignment.nll_gradient(policy, [row], parameters) for row in rows]
    mean = alignment.nll_gradient(policy, [final], parameters, reduction="mean")
    for name in mean:
        expected = sum(g[name] / n for g, n in zip(by_hand, lengths, strict=True)) / 3
        assert torch.allclose(mean[name], expected, atol=1e-12)


class Softmax(torch.nn.Module):
    """A policy that is a table of logits: one distribution over three words, whatever came before."""

    def __init__(self, logits):
        super().__init__()
        self.head = torch.nn.Linear(1, 3, bias=False, dtype=torch.float64)
        self.head.weight.data = torch.tensor(logits, dtype=torch.float64)[:, None]
        self.config = SimpleNamespace(_attn_implementation="sdpa", hidden_size=1)
        self.base_model = Ones(self.config)

    def get_output_embeddings(self):
        return self.head


class Ones:
    """A trunk whose hidden states are all 1."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, config):
        self.config = config

    def __call__(self, input_ids, **_):
        return SimpleNamespace(last_hidden_state=torch.ones(*input_ids.shape, 1, dtype=torch.float64))


def test_a_case_by_hand():
    """pi = softmax(z): grad_z log pi(a) = e_a - pi. With pi = (1/2, 1/4, 1/4), D' = {0} and a pair that
    prefers 0 to 1: v = pi - e_0 = (-1/2, 1/4, 1/4); s(0) = (e_0 - pi).v = -3/8; s(1) = (e_1 - pi).v = 3/8;
    G = -(w s(0) - w s(1)) = 3/4 w, half of it from either side."""
    policy = Softmax([2.0, 2.0, 2.0])
    with torch.no_grad():
        policy.head.weight.copy_(torch.tensor([[0.5], [0.25], [0.25]]).log())

    def one_word(*words):
        ids = torch.tensor([[2, word] for word in words])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "completion_mask": torch.tensor([[0, 1]]).expand_as(ids),
        }

    v = alignment.nll_gradient(policy, [one_word(0)], alignment.parameters_of(policy))
    assert v["head.weight"].flatten().tolist() == pytest.approx([-0.5, 0.25, 0.25])
    s = alignment.token_alignment(policy, one_word(0, 1), v)
    assert s.flatten().tolist() == pytest.approx([-3 / 8, 3 / 8])
    w = 0.15
    c = torch.tensor([[w], [-w]], dtype=torch.float64)
    g = alignment.alignment(c, s, weightings.sign_components(c), n=1)
    assert g == pytest.approx({"whole": 0.75 * w, "positive": 0.375 * w, "negative": 0.375 * w})


def test_tertiles_are_equal_thirds_of_what_the_mask_holds():
    weight = torch.tensor([[5.0, 1.0, 9.0], [2.0, 7.0, 3.0]])
    mask = torch.tensor([[True, True, True], [True, False, True]])
    thirds = weightings.tertile_components(weight, mask)
    assert [weight[m].tolist() for m in thirds.values()] == [[1.0, 2.0], [5.0, 3.0], [9.0]]
    assert sum(m.int() for m in thirds.values()).bool().equal(mask)
    few = torch.tensor([[True, False, True], [False, True, False]])  # thirds of what is held, not of all
    assert [weight[m].tolist() for m in weightings.tertile_components(weight, few).values()] == [[5.0], [7.0], [9.0]]


def test_cosine_by_hand():
    a, b = ({"x": torch.tensor(x), "y": torch.tensor(y)} for x, y in (([3.0, 0.0], [4.0]), ([3.0, 4.0], [0.0])))
    assert alignment.dot(a, b) == 9.0
    assert alignment.cosine(a, b) == pytest.approx(9 / 25)
    assert alignment.cosine(a, {"x": torch.zeros(2), "y": torch.zeros(1)}) != alignment.cosine(a, b)


def test_bad_input_is_one_line(case):
    policy, _, final, _ = case(torch.float64, 4)
    parameters = alignment.parameters_of(policy)
    with pytest.raises(BadInput, match="reduction='total': expected sum or mean"):
        alignment.nll_gradient(policy, [final], parameters, reduction="total")
    with pytest.raises(BadInput, match="final responses: none given"):
        alignment.nll_gradient(policy, [], parameters)
    with pytest.raises(BadInput, match=r"containing 'layers\.99': none is trainable"):
        alignment.parameters_of(policy, "layers.99")


def test_attention_is_written_out_for_the_forward_mode_pass_alone(case, monkeypatch):
    policy, pairs, final, _ = case(torch.float64, 4)
    v = alignment.nll_gradient(policy, [final], alignment.parameters_of(policy))
    seen = []

    def scored(model, batch):
        seen.append(model.config._attn_implementation)
        return token_log_probs(model, batch)

    monkeypatch.setattr(alignment, "token_log_probs", scored)
    alignment.token_alignment(policy, pairs, v)
    assert seen == ["exact"] and policy.config._attn_implementation == "sdpa"


def test_bfloat16_is_accumulated_in_float32(make_model, make_rows):
    """The same weights in bfloat16: gradients and dot products come out in float32, near those of float32."""
    rows = make_rows(8)
    batch = collate(rows[:4], 0, torch.device("cpu"))
    pieces = [{k: t[i : i + 1] for k, t in batch.items()} for i in range(8)]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        policy = make_model(dtype=torch.float32)
        for p in policy.parameters():
            p.data = p.data.to(torch.bfloat16).float()  # both start from the same rounded weights
        policy = policy.to(dtype)
        v = alignment.nll_gradient(policy, pieces, alignment.parameters_of(policy))
        assert all(g.dtype == torch.float32 for g in v.values())
        s = alignment.token_alignment(policy, batch, v)
        assert s.dtype == torch.float32
        found.append((v, s))
    (v, s), (v16, s16) = found
    assert alignment.cosine(v, v16) > 0.999
    assert torch.corrcoef(torch.stack([s.flatten(), s16.flatten()]))[0, 1] > 0.99
