"""Plots of the report: long curves are thinned and smoothed, gaps stay gaps."""

import math

from launch.report import plot


def test_long_curve_is_thinned_to_means():
    points = [(step, float(step % 2)) for step in range(10 * plot.MAX_POINTS)]
    thin = plot.thinned(points)
    assert len(thin) == plot.MAX_POINTS
    assert thin[-1] == (points[-1][0], 0.5)


def test_smoothing_neither_lags_nor_hides_the_ends():
    falling = [float(-step) for step in range(200)]
    assert plot.smoothed(falling) == falling
    noisy = [step % 2 for step in range(200)]
    assert all(abs(mean - 0.5) < 0.1 for mean in plot.smoothed(noisy)[5:-5])


def test_not_a_number_leaves_a_gap_and_no_warning():
    points = [(step, math.nan if step == 7 else 1.0 / step) for step in range(1, 80)]
    assert "<svg" in plot.line("loss", points, logarithmic=True, noisy=True)
    assert "<svg" in plot.line("grad", [(1, 0.0), (2, 0.0)], logarithmic=True, noisy=True)
    assert "<svg" in plot.line("loss", [(1, math.nan)], logarithmic=False, noisy=True)
