"""The picture of a check: durations, frames and replies per conversation, the most frequent classes, faults by kind."""

import io
from collections import Counter

from vtskip.data.check import Report

BAR, FAULT = "#5b7aa8", "#d1495b"
MOST, MOST_BINS = 12, 30  # bars


def picture(report: Report, title: str) -> bytes:
    """PNG bytes. No global state of matplotlib is used."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    failed = len({unit for unit, *_ in report.faults})
    figure.suptitle(
        f"{title}: {report.samples} conversations, {failed} of {report.units} videos or records with a fault",
        fontsize=11,
    )
    top, bottom = figure.subplots(2, 2)
    _histogram(top[0], [s for s in report.files.values() if s], "duration of a video in seconds", "videos")
    _histogram(top[1], report.frames, "frames the model sees of a conversation", "conversations")
    _bars(bottom[0], Counter(kind for _, kind, _ in report.faults), "faults by kind", FAULT)
    if report.classes:
        _bars(bottom[1], report.classes, "conversations by class", BAR)
    else:
        _histogram(bottom[1], report.words, "words of a reply", "replies")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def _histogram(axes, values, label: str, unit: str) -> None:
    """Bars; of whole numbers that are not many, one each, over its own number."""
    axes.set_xlabel(label)
    axes.set_ylabel(f"number of {unit}")
    axes.spines[["top", "right"]].set_visible(False)
    if not values:
        _none(axes)
        return
    whole = all(isinstance(value, int) for value in values) and max(values) - min(values) < MOST_BINS
    bins = [k - 0.5 for k in range(min(values), max(values) + 2)] if whole else min(MOST_BINS, max(5, len(set(values))))
    axes.hist(values, bins=bins, color=BAR, edgecolor="white", linewidth=0.8)
    axes.yaxis.get_major_locator().set_params(integer=True)
    if whole:
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.set_xlim(max(-0.7, min(values) - 1.5), max(values) + 1.5)


def _none(axes) -> None:
    axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def _bars(axes, counts: Counter, label: str, colour: str) -> None:
    shown = counts.most_common(MOST)[::-1]
    names = [name if len(name) <= 26 else f"{name[:24]}..." for name, _ in shown]
    more = len(counts) - len(shown)
    axes.set_xlabel(label + (f" ({more} more)" if more > 0 else ""))
    axes.spines[["top", "right"]].set_visible(False)
    if not shown:
        _none(axes)
        return
    places = range(len(shown))
    bars = axes.barh(places, [count for _, count in shown], color=colour)
    axes.bar_label(bars, padding=3, fontsize=8)
    axes.set_ylim(min(-0.6, len(shown) - 4.6), len(shown) - 0.4)  # few bars stand at the top and are not thick
    axes.margins(x=0.1)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_yticks(
        places, [name.encode("ascii", "replace").decode().replace("$", r"\$") for name in names], fontsize=8
    )
