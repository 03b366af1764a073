"""Figures whose drawing decides something: what stands where, and what is left out."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from preflab.figures.coordination import Course, Place, pareto, schedules

SFT = (0.2, 0.5)


def place(score, kl=2.0, diversity=0.4, others=()):
    return Place("dpo", *(np.array([value, *others]) for value in (score, kl, diversity)))


@pytest.fixture
def drawn():
    figures = []

    def draw(places):
        figures.append(pareto(places, SFT))
        return figures[-1].axes

    yield draw
    for figure in figures:
        plt.close(figure)


def discs(axis):
    """Where the numbers stand, in inches."""
    at = axis.transData.transform([text.xy for text in axis.texts])
    return axis.figure.dpi_scale_trans.inverted().transform(at)


def test_numbers_of_methods_that_coincide_stand_apart(drawn):
    for axis in drawn({f"m{i}": place(1.0) for i in range(5)} | {"high": place(2.0), "low": place(0.3)}):
        apart = np.linalg.norm(discs(axis)[:, None] - discs(axis), axis=-1)[~np.eye(7, dtype=bool)]
        assert apart.min() > 0.15
        assert [text.get_text() for text in axis.texts] == list("1234567")


def test_a_broken_language_lies_on_the_lower_edge_as_a_triangle(drawn):
    for axis in drawn({"good": place(1.5), "broken": place(-6.0, kl=90.0, diversity=0.6)}):
        low, high = axis.get_ylim()
        assert low > 0 and high > 1.5
        assert [text.xy[1] for text in axis.texts] == pytest.approx([1.5, low], abs=0.01)
        assert "v" in [line.get_marker() for line in axis.lines]


def test_the_line_joins_what_nothing_beats_in_both(drawn):
    less_kl = drawn({"a": place(1.5, kl=1.0), "b": place(1.6, kl=3.0), "beaten": place(1.4, kl=2.0)})[0]
    np.testing.assert_allclose(less_kl.lines[0].get_xydata(), [[0, 0.2], [1, 1.5], [3, 1.6]])
    broken = {"broken": place(-6.0, diversity=0.9)}
    more_diverse = drawn(
        {"a": place(1.5, diversity=0.3), "b": place(1.6, diversity=0.2), "c": place(1.4, diversity=0.1)} | broken
    )[1]
    np.testing.assert_allclose(more_diverse.lines[0].get_xydata(), [[0.2, 1.6], [0.3, 1.5], [0.5, 0.2]])


def test_where_nothing_beats_the_sft_model_the_axes_still_stand_upright(drawn):
    for axis in drawn({"a": place(-1.0, kl=-0.2), "b": place(0.1)}):
        low, high = axis.get_ylim()
        assert low < SFT[0] < high
        assert next(text.xy[1] for text in axis.texts) == pytest.approx(low, abs=0.01)


@pytest.mark.parametrize(("n", "rows", "columns"), [(1, 1, 1), (4, 1, 4), (7, 2, 4)])
def test_schedules_stand_four_in_a_row_each_above_its_own_g(n, rows, columns):
    g = {part: np.zeros((2, 3)) for part in ("positive", "negative", "trained")}
    lambdas = {f"m{i}": np.full((2, 4), i / 10) for i in range(n)}
    figure = schedules({name: Course(np.arange(3), g, np.arange(4), share) for name, share in lambdas.items()})
    titled = [axis for axis in figure.axes if axis.get_title(loc="left")]
    assert len(figure.axes) == 2 * n and [axis.get_title(loc="left") for axis in titled] == list(lambdas)
    assert [axis.lines[1].get_ydata()[0] for axis in titled] == [i / 10 for i in range(n)]
    assert titled[0].get_gridspec().ncols == columns and titled[0].get_gridspec().nrows == 2 * rows
    plt.close(figure)
