"""How every figure looks: sizes, colours that colour-blind readers can tell apart, and rendering without a display."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

DPI = 160
INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
# Okabe and Ito's palette, the yellow left out: it cannot be read on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LEARNED, EXACT, REFERENCE = COLOURS[0], COLOURS[1], COLOURS[2]
STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def rendered(draw: Callable[[], Figure]) -> bytes:
    """A figure as PNG, drawn in this module's style; matplotlib's own settings are left as they are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        for name, value in STYLE.items():
            matplotlib.rcParams[name] = value  # type: ignore[index]
        buffer = io.BytesIO()
        draw().savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def panel(width: float = 5.6, height: float = 3.9) -> tuple[Figure, Axes]:
    """A figure with one plot; sizes in inches."""
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots()


def ordered(count: int) -> list[Any]:
    """Colours for an ordered series, dark to light."""
    return [colormaps["viridis"](level) for level in np.linspace(0.0, 0.82, count)]


def context_axis(axes: Axes, steps: Sequence[int], ends: Sequence[int]) -> None:
    """A logarithmic axis of context sizes with a place for 0, and where the episodes end."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    axes.set_xlim(-0.08, steps[-1] * 1.12)
    shown = [steps[0]]
    for step in steps[1:]:  # labels that would touch are left out
        if np.log10(max(step, 1) / max(shown[-1], 0.3)) > 0.16 or step == steps[-1]:
            shown.append(step)
    if len(shown) > 2 and shown[-1] / shown[-2] < 1.4:
        del shown[-2]
    axes.xaxis.set_major_locator(FixedLocator(list(shown)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    even = all(end == (k + 1) * ends[0] for k, end in enumerate(ends))
    unit = (f" (transitions, {ends[0]} an episode)" if even else " (transitions)") if ends else ""
    axes.set_xlabel(f"data seen{unit}")
    axes.grid(False, axis="x")
    for end in ends:
        axes.axvline(end, color=GRID, linewidth=0.9, zorder=0)


def log_axis(axes: Axes) -> None:
    """A logarithmic vertical axis of at least a decade, so that flat looks flat, with plain decimals: 0.01, 0.1, 1."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, high / 12), high)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def band(axes: Axes, x: Any, mean: Any, interval: Any, colour: Any, label: str) -> None:
    """A line with its interval behind it."""
    axes.plot(x, mean, color=colour, label=label, marker="o", markersize=3.5)
    axes.fill_between(x, *interval, color=colour, alpha=0.18, linewidth=0)
