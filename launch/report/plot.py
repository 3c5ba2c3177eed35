"""Plots as SVG elements that take their colours from the page around them, light or dark."""

import io
import math
import re
from collections.abc import Mapping, Sequence

import markupsafe
import matplotlib
from matplotlib import ticker
from matplotlib.figure import Figure

MAX_POINTS = 600  # of a curve; a longer one is drawn by the means of equal stretches
SMOOTHED_POINTS = 40  # from here on a noisy curve is drawn with its moving mean

# Colours that matplotlib writes and the page then turns into its own.
INK, FAINT = "#010203", "#010204"
SERIES = ("#010205", "#010206", "#010207", "#010208")
PAGE_COLOURS = {
    INK: "currentColor",
    FAINT: "var(--rule)",
    **{colour: f"var(--c{index})" for index, colour in enumerate(SERIES)},
}
STYLE = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "svg.hashsalt": "seedbed",  # the same run gives the same page
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def line(
    title: str, points: Sequence[tuple[int, float]], *, logarithmic: bool, noisy: bool
) -> markupsafe.Markup:
    """A curve over steps.

    Args:
      title: what was measured, with its unit.
      points: (step, value), by rising step; a value that is not finite leaves a gap.
      logarithmic: whether the values are drawn on a logarithmic scale.
      noisy: whether a long curve is drawn as its moving mean, with the raw one faint behind it.

    Returns:
      An svg element.
    """
    steps, values = zip(*thinned(points), strict=True)
    smooth = noisy and len(values) >= SMOOTHED_POINTS
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.8, 1.85))
        figure.subplots_adjust(left=0.17, right=0.95, top=0.88, bottom=0.14)
        axes = figure.subplots()
        alpha, marker = (0.35 if smooth else 1), ("o" if len(values) < 15 else None)
        axes.plot(steps, values, color=SERIES[0], lw=1.2, alpha=alpha, marker=marker, ms=3)
        if smooth:
            axes.plot(steps, smoothed(values), color=SERIES[0], lw=1.8)
        if logarithmic and any(value > 0 for value in values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(ticker.NullLocator())
        axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:.5g}"))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        axes.set_title(title)
        axes.margins(x=0.02)
        return _svg(figure, f"{title}: {values[0]:.4g} at first, {values[-1]:.4g} at last")


def bars(
    groups: Sequence[str], values: Mapping[str, Sequence[float]], unit: str
) -> markupsafe.Markup:
    """Groups of bars side by side, every bar with its number.

    Args:
      groups: titles along the axis.
      values: of each system, a height for every group; nan leaves a gap. At most four systems.
      unit: what the heights are.

    Returns:
      An svg element.
    """
    width = 0.8 / len(values)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(9.0, 0.36 * len(groups) * len(values)), 2.7))
        figure.subplots_adjust(left=0.06, right=0.995, top=0.87, bottom=0.1)
        axes = figure.subplots()
        for index, (title, heights) in enumerate(values.items()):
            shift = (index - (len(values) - 1) / 2) * width
            places = [group + shift for group in range(len(groups))]
            drawn = axes.bar(places, heights, width * 0.92, label=title, color=SERIES[index])
            axes.bar_label(drawn, fmt="%.2f", fontsize=8, padding=1)
        axes.set_xticks(range(len(groups)), groups)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="x", visible=False)
        axes.set_ylabel(unit)
        figure.legend(loc="upper left", ncols=len(values), frameon=False, handlelength=1)
        return _svg(figure, f"{unit}: " + ", ".join(groups))


def thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """At most MAX_POINTS points: the last step and the mean value of equal stretches."""
    width = math.ceil(len(points) / MAX_POINTS)
    stretches = [points[start : start + width] for start in range(0, len(points), width)]
    return [
        (stretch[-1][0], sum(value for _, value in stretch) / len(stretch)) for stretch in stretches
    ]


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean over a twentieth of the curve around each point, narrower towards the ends.

    It looks as far ahead as back, so a falling curve is not drawn above itself.
    """
    reach = len(values) // 40
    means = []
    for index in range(len(values)):
        near = min(reach, index, len(values) - 1 - index)
        finite = [v for v in values[index - near : index + near + 1] if math.isfinite(v)]
        means.append(sum(finite) / len(finite) if finite else math.nan)
    return means


def _svg(figure: Figure, label: str) -> markupsafe.Markup:
    """The figure as an element of the page, in the colours of the page."""
    written = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(written, format="svg", transparent=True, metadata=no_metadata)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    # Its style sheet is a rule for every element; the page has it, for all of its plots.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    for colour, own in PAGE_COLOURS.items():
        svg = svg.replace(colour, own)
    label = markupsafe.escape(label)
    return markupsafe.Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))
