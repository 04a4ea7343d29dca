"""The picture of a check: durations, frames and replies per conversation, the most frequent classes, faults by kind."""

import io
from collections import Counter

from vtskip.data.check import Report

BAR, FAULT = "#5b7aa8", "#d1495b"
MOST = 12  # bars


def picture(report: Report, title: str) -> bytes:
    """PNG bytes. No global state of matplotlib is used."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    failed = len({unit for unit, *_ in report.faults})
    figure.suptitle(f"{title}: {report.samples} conversations, {failed} of {report.units} with a fault", fontsize=11)
    top, bottom = figure.subplots(2, 2)
    _histogram(top[0], [s for s in report.files.values() if s], "duration of a video, s", "videos")
    _histogram(top[1], report.frames, "frames of a conversation", "conversations")
    _bars(bottom[0], Counter(kind for _, kind, _ in report.faults), "faults", FAULT)
    if report.classes:
        _bars(bottom[1], report.classes, "conversations by class", BAR)
    else:
        _histogram(bottom[1], report.words, "words of a reply", "replies")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def _histogram(axes, values, label: str, unit: str) -> None:
    axes.set_xlabel(label)
    axes.set_ylabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    if values:
        axes.hist(values, bins=min(30, max(5, len(set(values)))), color=BAR)
        axes.yaxis.get_major_locator().set_params(integer=True)
    else:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
        axes.set_yticks([])


def _bars(axes, counts: Counter, label: str, colour: str) -> None:
    shown = counts.most_common(MOST)[::-1]
    names = [name if len(name) <= 32 else f"{name[:30]}..." for name, _ in shown]
    more = len(counts) - len(shown)
    axes.set_xlabel(label + (f" ({more} more)" if more > 0 else ""))
    axes.spines[["top", "right"]].set_visible(False)
    if not shown:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
        axes.set_yticks([])
        return
    places = range(len(shown))
    axes.barh(places, [count for _, count in shown], color=colour)
    axes.set_ylim(-0.6, max(4, len(shown)) - 0.4)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_yticks(
        places, [name.encode("ascii", "replace").decode().replace("$", r"\$") for name in names], fontsize=8
    )
