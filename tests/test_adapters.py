"""Updates as thin products against the same matrices multiplied out."""

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from preflab import adapters
from preflab.adapters import Update

SHAPES = {("0", "up"): (9, 6), ("0", "down"): (5, 7), ("1", "up"): (9, 6)}


def made(seed, k=3):
    """Updates of three matrices, rank k."""
    g = torch.Generator().manual_seed(seed)

    def of(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {where: Update(of(out, k), of(k, in_)) for where, (out, in_) in SHAPES.items()}


def flat(updates):
    return torch.cat([(u.up @ u.down).flatten() for u in updates.values()]).numpy()


def cosine(x, y):
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def of_factors(start, middle, end):
    return adapters.factor_cosine((start, middle), (middle, end))


def test_cosines_and_norms_are_those_of_the_products_multiplied_out():
    a, b = made(0), made(1)
    moved = adapters.difference(b, a)
    x, y = flat(a), flat(b)
    assert adapters.cosine(a, b) == pytest.approx(cosine(x, y), rel=0, abs=1e-10)
    assert adapters.cosine(a, moved) == pytest.approx(cosine(x, y - x), rel=0, abs=1e-10)
    assert adapters.norm(moved) == pytest.approx(np.linalg.norm(y - x), rel=1e-10)
    for where, found in adapters.by_place(a, moved).items():
        one, other = flat({0: a[where]}), flat({0: moved[where]})
        assert found == pytest.approx(cosine(one, other), rel=0, abs=1e-10)


def test_a_change_of_gauge_moves_the_factors_and_not_the_product():
    rng = torch.Generator().manual_seed(2)
    start, middle, end = made(0), made(1), made(2)
    r = torch.randn(3, 3, generator=rng, dtype=torch.float64)
    turned = [{where: u.regauged(r) for where, u in some.items()} for some in (start, middle, end)]
    np.testing.assert_allclose(flat(turned[1]), flat(middle), atol=1e-10)
    before = adapters.cosine(adapters.difference(middle, start), adapters.difference(end, middle))
    after = adapters.cosine(adapters.difference(turned[1], turned[0]), adapters.difference(turned[2], turned[1]))
    assert after == pytest.approx(before, abs=1e-10)
    assert abs(of_factors(*turned) - of_factors(start, middle, end)) > 0.01


def test_the_cosine_of_factors_is_that_of_their_moves():
    start, middle, end = made(0), made(1), made(2)

    def factors(some):
        return np.concatenate([t.numpy().ravel() for u in some.values() for t in (u.up, u.down)])

    one, other = factors(middle) - factors(start), factors(end) - factors(middle)
    assert of_factors(start, middle, end) == pytest.approx(cosine(one, other), abs=1e-12)


def test_nothing_moved_has_no_cosine():
    a = made(0)
    none = {where: Update(torch.zeros_like(u.up), u.down) for where, u in a.items()}
    assert np.isnan(adapters.cosine(a, none)) and adapters.norm(none) == 0
    assert np.isnan(adapters.overlap(*(adapters.directions(u[("0", "up")], 3)[0] for u in (a, none)))[0])


def test_principal_angles_are_those_of_the_spaces():
    a, b = (made(seed)[("0", "up")] for seed in (0, 1))
    for side in (0, 1):
        bases = [adapters.directions(u, 3)[side] for u in (a, b)]
        spans = [(u.up if side == 0 else u.down.T).numpy() for u in (a, b)]  # of full rank, so the product's own
        np.testing.assert_allclose(
            adapters.principal_cosines(*bases), np.sort(np.cos(subspace_angles(*spans)))[::-1], atol=1e-9
        )
        np.testing.assert_allclose(bases[0].T @ bases[0], np.eye(3), atol=1e-12)


def test_the_strongest_directions_come_first():
    up, down = torch.diag(torch.tensor([1.0, 5.0, 3.0])).double(), torch.eye(3, 4).double()
    left, right = adapters.directions(Update(up, down), 2)
    np.testing.assert_allclose(left.abs(), [[0, 0], [1, 0], [0, 1]], atol=1e-12)
    assert right.shape == (4, 2)


def test_random_spaces_overlap_as_said(rng):
    bases = [torch.linalg.qr(torch.as_tensor(rng.normal(size=(12, k))))[0] for _ in range(300) for k in (3, 2)]
    found = [adapters.overlap(a, b) for a, b in zip(bases[::2], bases[1::2], strict=True)]
    assert found[0][1] == pytest.approx(3 / 12)
    assert np.mean([value for value, _ in found]) == pytest.approx(3 / 12, abs=0.02)
    assert adapters.overlap(bases[0], bases[0])[0] == pytest.approx(1)


def test_an_adapters_update_is_what_peft_adds_to_the_weight(make_model):
    model = make_model("llama", rank=2)
    found = adapters.lora_updates(dict(model.named_parameters()), alpha=4, rank=2)
    assert len(found) == 14
    for name, module in model.named_modules():
        if name.endswith("layers.1.mlp.up_proj"):
            added = module.get_delta_weight("default").detach().numpy()
    up = found[("1", "up_proj")]
    np.testing.assert_allclose(up.up @ up.down, added, atol=1e-12)


def test_full_fine_tuning_has_products_with_the_identity(make_model):
    before, after = (dict(make_model("gpt_neox", seed=s).named_parameters()) for s in (0, 1))
    found = adapters.full_updates(after, before)
    name = "gpt_neox.layers.1.attention.dense.weight"
    np.testing.assert_allclose(found[("1", "dense")].up, (after[name] - before[name]).detach(), atol=0)
    assert len(found) == 8 and adapters.cosine(found, found) == pytest.approx(1)
