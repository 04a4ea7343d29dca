"""The picture of a bench: measured time against modelled work. A method that saves what it claims lies on the diagonal."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from vtskip.errors import ConfigError
from vtskip.eval.bench.subjects import CONTROL, DENSE
from vtskip.eval.bench.tables import blocks

MARKS = {"attached": "o", "masked": "X", "stock": "s", "flash": "^", "mixture_of_depth": "D"}
COLOURS = ("#d1495b", "#5b7aa8", "#e09f3e", "#5fa777", "#8e6c8a", "#4ba3c3", "#9c6644", "#8d99ae", "#bc4b7b", "#2b2d42")
PANELS = (("prefill", "flops_ratio"), ("train", "flops_train_ratio"))


def picture(record: Mapping[str, Any]) -> bytes:
    """PNG bytes: a line of panels per case, prefill and training step. No global state of matplotlib is used.

    Raises ConfigError for the record of a streaming bench, whose floors are a table's matter.
    """
    if record["kind"] != "bench":
        raise ConfigError("--picture draws prefill and training steps; a record of --stream has tables (--markdown)")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = blocks(record)
    phases = [(p, k) for p, k in PANELS if any(p in row for _, block in cases for row in block["methods"])]
    figure = Figure(figsize=(4.6 * len(phases), 3.9 * len(cases) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(cases), len(phases), squeeze=False)
    names = list(dict.fromkeys(row["name"] for _, block in cases for row in block["methods"]))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(n for n in names if n not in (DENSE, CONTROL))}
    shown: dict[str, Any] = {}
    for line, (name, block) in zip(panels, cases):
        for axes, (phase, key) in zip(line, phases):
            shown |= _panel(axes, block, phase, key, colours)
            axes.set_title(f"{name}: {phase}" if name else phase, loc="left", fontsize=9)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def _panel(axes: Any, block: Mapping[str, Any], phase: str, key: str, colours: Mapping[str, str]) -> dict[str, Any]:
    shown, top = {}, 1.1
    for row in block["methods"]:
        flops = row.get(key) or (row["flops_ratio"] if key == "flops_ratio" else None)
        if row["name"] not in colours or phase not in row or flops is None:
            continue
        stats = row[phase]
        spread = [[stats["median"] - stats["p20"]], [stats["p80"] - stats["median"]]]
        style = {"fmt": MARKS.get(row.get("run", "attached"), "o"), "color": colours[row["name"]], "markersize": 5}
        shown[row["name"]] = axes.errorbar(flops, stats["median"], yerr=spread, capsize=2, elinewidth=1, **style)
        top = max(top, stats["p80"] * 1.05, flops * 1.05)
    noise = block["noise"].get(phase, 0) / 2
    axes.fill_between([0, top], [-noise, top - noise], [noise, top + noise], color="#d7dbe2", linewidth=0)
    axes.plot([0, top], [0, top], color="#2b2d42", linewidth=1)
    axes.set_xlim(0, top)
    axes.set_ylim(0, top)
    axes.set_xlabel("FLOPs, stock dense = 1 (band: noise of dense against dense)", fontsize=8)
    axes.set_ylabel("time, stock dense = 1", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return shown
