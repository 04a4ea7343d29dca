"""The picture of a report: what each row scores against what it costs, one panel per task."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vtskip.eval.report import estimate_of

OWN = {"model": "#d1495b", "dense": "#2b2d42"}
OTHERS = ("#5b7aa8", "#e09f3e", "#5fa777", "#8e6c8a", "#4ba3c3", "#9c6644", "#c9a227", "#bc4b7b", "#6a994e", "#577590")
MARKS = "os^vP*XDh<>"
UNITS = {"time_diff": "seconds", "false_triggers_per_minute": "per minute"}  # of metrics that are no shares
LINES = (":", "--", "-.")
APART = 0.02  # of the width of a panel: rows of one cost stand beside each other, as the label says


def picture(entries: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG bytes. Rows without a model are lines across; whiskers are 95 % intervals. No global state of matplotlib is used."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(entry["task"] for entry in entries))
    columns = min(3, len(tasks))
    lines = -(-len(tasks) // columns)
    figure = Figure(figsize=(max(6.0, 4.2 * columns), 3.4 * lines + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    styles = _styles(entries)
    shown: dict[str, Any] = {}
    for axes, task in zip(panels, tasks):
        shown |= _panel(axes, [entry for entry in entries if entry["task"] == task], styles)
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    if shown:
        wide = min(len(shown), 3 * columns)
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=wide, frameon=False, fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def _styles(entries: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[str, str, str]]:
    """(run, row) -> name, colour by row, mark by run (by row where there is one run)."""
    runs, rows = ([*dict.fromkeys(entry[key] for entry in entries)] for key in ("run", "row"))
    others = [row for row in rows if row not in OWN]
    colours = OWN | {row: OTHERS[i % len(OTHERS)] for i, row in enumerate(others)}
    out = {}
    for run, row in dict.fromkeys((entry["run"], entry["row"]) for entry in entries):
        several = len(runs) > 1
        mark = MARKS[(runs.index(run) if several else rows.index(row)) % len(MARKS)]
        out[run, row] = (f"{run}: {row}" if several else row, colours[row], mark)
    return out


def _panel(
    axes: Any, entries: Sequence[Mapping[str, Any]], styles: Mapping[Any, tuple[str, str, str]]
) -> dict[str, Any]:
    block, beside, shown, lines = entries[0]["block"], Counter[float](), {}, 0
    costs = [e["cost"]["flops_ratio"] for e in entries if "flops_ratio" in e["cost"]]
    left, right = _range(costs)
    for entry in entries:
        estimate, cost = estimate_of(entry, block["primary"]), entry["cost"].get("flops_ratio")
        name, colour, mark = styles[entry["run"], entry["row"]]
        if (value := estimate["value"]) is None:
            continue
        if cost is None:
            style, lines = LINES[lines % len(LINES)], lines + 1
            shown[name] = axes.axhline(value, color=colour, linestyle=style, linewidth=1.4)
            continue
        low, high = (estimate[k] if estimate[k] is not None else value for k in ("low", "high"))
        place = cost + APART * (right - left) * beside[round(cost, 2)]
        beside[round(cost, 2)] += 1
        spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar(place, value, yerr=spread, fmt="none", ecolor=colour, capsize=2, linewidth=1)
        shown[name] = axes.plot(place, value, mark, color=colour, markersize=5.5, clip_on=False, zorder=3)[0]
    known = block.get("ceilings", {}).get(block["primary"])
    if known:
        shown["ceiling"] = axes.axhline(known["best"], color="#b0b0b0", linewidth=1, zorder=0)
    _scales(axes, entries, left, right)
    return shown


def _range(costs: Sequence[float]) -> tuple[float, float]:
    """The costs that a panel shows: at least half a stock model wide."""
    low, high = (min(costs), max(costs)) if costs else (0.0, 1.0)
    spare = max(0.5 - (high - low), 0.1) / 2
    return max(0.0, low - spare), high + spare


def _scales(axes: Any, entries: Sequence[Mapping[str, Any]], left: float, right: float) -> None:
    """Title, names of the axes with their units, and limits: nothing below zero where no value is."""
    block = entries[0]["block"]
    estimates = [estimate_of(entry, block["primary"]) for entry in entries]
    values = [e[k] for e in estimates for k in ("value", "low", "high") if e[k] is not None]
    values += [k["best"] for m, k in block.get("ceilings", {}).items() if m == block["primary"]]
    name = block["primary"].partition("/")[2]
    unit = next((f", {unit}" for start, unit in UNITS.items() if name.startswith(start)), "")
    arrow = "higher" if block["higher_is_better"] else "lower"
    axes.set_title(
        f"{entries[0]['task']}: {block['n_items']} items in {block['n_clusters']} clusters", loc="left", fontsize=9
    )
    axes.set_xlabel("FLOPs, stock model = 1 (equal costs side by side)", fontsize=8)
    axes.set_ylabel(f"{block['primary']}{unit}\n({arrow} is better)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_xlim(left, right)
    axes.margins(y=0.08)
    if values and min(values) >= 0:
        axes.set_ylim(0, max(1.08 * max(values), 0.05))
    axes.spines[["top", "right"]].set_visible(False)
