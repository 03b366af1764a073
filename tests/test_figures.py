"""Figures whose drawing decides something: what stands where, and what is left out."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from preflab.figures.coordination import pareto, schedules
from preflab.figures.dynamics import COLOURS, first_order, six_panels
from preflab.judging import Place
from preflab.measured import Course

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


def boxes(axis):
    """Where the names stand, in pixels: left, bottom, right, top."""
    axis.figure.canvas.draw()
    return np.array([text.get_window_extent().extents for text in axis.texts])


def overlap(one, other):
    return (one[:2] < other[2:]).all() and (other[:2] < one[2:]).all()


def test_names_of_methods_that_coincide_stand_apart_and_cover_no_mark(drawn):
    places = {f"m{i}": place(1.0) for i in range(3)} | {"high": place(2.0), "low": place(0.3)}
    for axis in drawn(places):
        found = boxes(axis)
        assert [text.get_text() for text in axis.texts] == list(places)
        assert not [(i, j) for i in range(5) for j in range(i) if overlap(found[i], found[j])]
        marks = [axis.transData.transform(line.get_xydata())[0] for line in axis.lines if line.get_marker() in "os*"]
        assert not [mark for mark in marks for box in found if overlap(box, np.r_[mark, mark])]


def test_many_methods_have_numbers_and_a_list_beside_the_picture(drawn):
    axis = drawn({f"m{i}": place(0.3 * i) for i in range(12)})[0]
    assert [text.get_text() for text in axis.texts] == [str(i) for i in range(1, 13)]
    listed = [text.get_text() for legend in axis.figure.legends for text in legend.get_texts()]
    assert {f"m{i}" for i in range(12)} <= set(listed)


def low_triangles(axis):
    return [line.get_ydata()[0] for line in axis.lines if line.get_marker() == "v"]


def test_a_broken_language_lies_on_the_lower_edge_as_a_triangle(drawn):
    for axis in drawn({"good": place(1.5), "broken": place(-6.0, kl=90.0, diversity=0.6)}):
        low, high = axis.get_ylim()
        assert low > 0 and high > 1.5
        assert low_triangles(axis) == pytest.approx([low], abs=0.01)


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
        assert low_triangles(axis)[0] == pytest.approx(low, abs=0.01)


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


TERTILES = ("bottom", "middle", "top")


def g_without_tertiles_at_step_0(seeds=2, steps=4):
    """G of a run whose first weights are all equal: there are no thirds then."""
    course = np.linspace(1.0, 2.0, steps) * np.ones((seeds, 1))
    g = {part: (i + 1) * course for i, part in enumerate(("whole", "positive", "negative", *TERTILES))}
    for part in TERTILES:
        g[part][:, 0] = np.nan
    return g


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_six_panels_leave_out_tertiles_where_all_weights_are_equal_and_nothing_else():
    g, x = g_without_tertiles_at_step_0(), np.linspace(0, 1, 4)
    noise = {"whole": np.full((2, 4), 0.1)}
    figure = six_panels(
        {m: x for m in ("dpo", "ppo")}, {m: g for m in ("dpo", "ppo")}, dict.fromkeys(("dpo", "ppo"), noise)
    )
    figure.canvas.draw()
    whole, signs, tertiles = figure.axes[:3]
    means = {line.get_label(): line for line in tertiles.lines if line.get_label() in TERTILES}
    assert set(means) == set(TERTILES)
    for part, line in means.items():
        np.testing.assert_allclose(line.get_xydata()[1:], np.c_[x, g[part].mean(0)][1:])
        assert np.isnan(line.get_ydata()[0]) and line.get_color() == COLOURS[part]
    for axis, part in ((whole, "whole"), (signs, "positive"), (signs, "negative")):
        (line,) = (line for line in axis.lines if line.get_label() == part)
        np.testing.assert_allclose(line.get_xydata(), np.c_[x, g[part].mean(0)])
    low, high = tertiles.get_ylim()
    assert np.isfinite([low, high]).all() and high >= 12 and tertiles.get_xlim()[0] <= 0
    plt.close(figure)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_first_order_shows_what_was_measured_and_leaves_out_what_was_not():
    predicted, changed = np.array([[np.nan, 1.0, -2.0]]), np.array([[0.5, 1.5, np.nan]])
    figure = first_order({"dpo": predicted}, {"dpo": changed})
    figure.canvas.draw()
    (axis,) = figure.axes
    assert axis.get_xlim() == axis.get_ylim() == pytest.approx((-2.2, 2.2))
    plt.close(figure)
