"""The model card of a saved method: what it skips where, what that costs, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from threading import get_ident
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vtskip._files import replacing, write_atomic
from vtskip.cost import kv_row_bytes
from vtskip.models.families import decoder_of
from vtskip.plan import SCORES, VIT_CLS, RowMap
from vtskip.runtime.attach import Handle
from vtskip.runtime.report import LayerReport, Report, make_report
from vtskip.runtime.stats import StepState
from vtskip.runtime.unread import Asked, read_part

CARD_NAME, PICTURE_NAME = "README.md", "vtskip_plan.png"
BEGIN, END = "<!-- vtskip: written by save_pretrained, down to the end mark -->", "<!-- vtskip: end -->"
TEXT_ROWS, VISION_ROWS = 64, 576  # the reference prompt: LLaVA-1.5's image and a short question
Shares = tuple[float, float, float]


def write_card(handle: Handle, config: dict[str, Any], folder: Path, name: str) -> None:
    """Write ``README.md`` and, where matplotlib is installed, the picture of the plan.

    A card that is there already (peft's, or one that somebody has edited) keeps its text: only the part between our
    marks is exchanged, or added at its end.

    Args:
        config: what ``vtskip_config.json`` holds. name: what to load it by, a folder or Hub repository.
    """
    report, measured = what_ran(handle)
    shares = [kept_shares(layer) for layer in report.layers]
    picture = draw(folder / PICTURE_NAME, shares, config["method"]["name"])
    part = "\n\n".join(
        [
            BEGIN,
            *about(handle, config),
            *plan_part(shares, measured, picture),
            *cost_part(report),
            *loading_part(config, name),
            f"Written by vtskip {config['vtskip_version']} with torch {torch.__version__} and {transformers_version()}.",
            END,
        ]
    )
    path = folder / CARD_NAME
    old = path.read_text(encoding="utf-8") if path.is_file() else front_matter(config)
    before, _, rest = old.partition(BEGIN)
    after = rest.partition(END)[2]
    write_atomic(path, (before.rstrip() + "\n\n" + part + "\n" + after.lstrip("\n")).encode())


def what_ran(handle: Handle) -> tuple[Report, str]:
    """The report of what ran, or of the reference prompt, and a sentence that says which."""
    if handle.state.last_rows is not None:
        report = handle.report()
        return report, f"Both tables are measured; forwards since the method was attached: {report.forwards}."
    report, other = reference_report(handle), reference_report(handle, seed=1)
    said = f"Both tables are from the cost model, for one prompt of {TEXT_ROWS} text rows and an image of {VISION_ROWS} rows."
    if report != other:
        said += " How many rows this method keeps depends on the rows, which here are random."
    return report, said


@torch.no_grad()
def reference_report(handle: Handle, seed: int = 0) -> Report:
    """Counts of one prefill of the reference prompt, from the method's own plans on random hidden states."""
    length = TEXT_ROWS + VISION_ROWS
    vision = np.zeros((1, length), bool)
    vision[0, TEXT_ROWS // 2 : TEXT_ROWS // 2 + VISION_ROWS] = True
    layers = decoder_of(handle.model)[0].layers
    weight = next(layers[0].parameters())
    rows, state = RowMap.build(vision, device=weight.device), StepState(every_step=handle.state.every_step)
    generator = torch.Generator().manual_seed(seed)

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(weight)

    hidden = noise(1, length, handle.shape.hidden)
    state.reset(handle.shape.layers)
    state.asked = {get_ident(): Asked(1)} if handle.lossless else {}
    state.begin(rows)
    # Attention that only a real forward has: numbers of rows do not depend on it.
    rows.memo |= {(SCORES, i): noise(1, length) for i in range(len(layers))} | {VIT_CLS: noise(1, length)}
    for i, layer in enumerate(layers):
        if hasattr(layer, "vtskip"):
            planner = layer.vtskip
            plan = part = planner(rows, hidden)
            if handle.lossless and (unread := planner.runtime.unread) != "none":
                part = read_part(plan, rows, unread, planner.compact, state.every_step)
            state.record(i, plan, 0, ran=part)
    state.finish(1, length, None)
    state.logit_rows = 1
    row_bytes = kv_row_bytes(handle.shape, weight.element_size())
    state.kv_bytes = row_bytes * sum(count.cache for count in state.layers)
    state.kv_bytes_dense = row_bytes * length * handle.shape.layers
    return make_report(handle.method.name, handle.shape, state)


def kept_shares(layer: LayerReport) -> Shares:
    """Vision rows that attend, vision rows that run the FFN, and all rows that enter the KV cache, each in [0, 1]."""
    return layer.kept, layer.kept_ffn, layer.cache / layer.rows if layer.rows else 1.0


# -- the parts of the card -----------------------------------------------------------------------------------------------


def front_matter(config: dict[str, Any]) -> str:
    """Metadata for the Hub. A base model that is a local path is not named: the Hub accepts ids only."""
    lines = ["---", "library_name: vtskip"]
    if on_hub(config["base"]["name_or_path"]):
        lines.append(f"base_model: {config['base']['name_or_path']}")
    return "\n".join([*lines, "tags:", "- vtskip", f"- {config['method']['name']}", "---", ""])


def on_hub(name: str | None) -> bool:
    return (
        bool(name)
        and str(name).count("/") == 1
        and not str(name).startswith((".", "/"))
        and not Path(str(name)).exists()
    )


def about(handle: Handle, config: dict[str, Any]) -> list[str]:
    method, base = handle.method, config["base"]
    kind = cast(Any, type(method))
    options = {k: v for k, v in config["method"].items() if k != "name"}
    source = f" The method is {kind.paper}." if kind.paper else ""
    name = base["name_or_path"] or "a model built in memory"
    at = f" at revision `{base['revision']}`" if base["revision"] else ""
    trained = "trained parameters" if kind.trained else "no trained parameters"
    return [
        f"# `{method.name}` for {base['model_class']}",
        f"{first_line(kind)}{source} Skipped: {kind.skips or 'nothing'}. It holds {trained} and belongs to "
        f"{f'`{name}`' if base['name_or_path'] else name}{at} ({base['layers']} layers, hidden size {base['hidden']}).",
        "```json\n" + json.dumps(options, indent=2) + "\n```",
    ]


def first_line(cls: type) -> str:
    return (cls.__doc__ or cls.__name__).strip().partition("\n")[0]


def plan_part(shares: Sequence[Shares], measured: str, picture: bool) -> list[str]:
    """The plan: one line for all layers that keep the same."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, layer in enumerate(shares):
        groups.setdefault(tuple(f"{share:.3g}" for share in layer), []).append(i)
    lines = [f"| {ranges(layers)} | {' | '.join(cells)} |" for cells, layers in groups.items()]
    head = "| layers | vision rows that attend | vision rows in the FFN | rows in the KV cache |\n|---|---|---|---|\n"
    parts = ["## What each layer keeps", head + "\n".join(lines), measured]
    return [*parts, f"![Kept rows per layer]({PICTURE_NAME})"] if picture else parts


def ranges(layers: Sequence[int]) -> str:
    """``0, 2-5, 8``."""
    runs: list[list[int]] = []
    for i in layers:
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def cost_part(report: Report) -> list[str]:
    rows = [
        ("GFLOPs, products with weights", report.flops_linear / 1e9, report.flops_linear_dense / 1e9),
        ("GFLOPs, attention products too", report.flops_full / 1e9, report.flops_full_dense / 1e9),
        ("KV cache, MB", report.kv_bytes / 1e6, report.kv_bytes_dense / 1e6),
    ]
    lines = [f"| {name} | {own:.4g} | {dense:.4g} | {own / dense if dense else 1:.3f} |" for name, own, dense in rows]
    head = "| decoder and LM head | with the method | dense | ratio |\n|---|---|---|---|\n"
    return ["## Cost", head + "\n".join(lines)]


def loading_part(config: dict[str, Any], name: str) -> list[str]:
    base = config["base"]
    library = "vtskip" if base["model_class"] == "StreamingLlava" else "transformers"
    revision = f", revision={quoted(base['revision'])}" if base["revision"] else ""
    lines = [
        "import vtskip",
        f"from {library} import {base['model_class']}",
        f"model = {base['model_class']}.from_pretrained({quoted(base['name_or_path'] or 'BASE MODEL')}{revision})",
        f"handle = vtskip.load_pretrained(model, {quoted(name)})",
    ]
    return ["## Load it", "```python\n" + "\n".join(lines) + "\n```"]


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def transformers_version() -> str:
    import transformers

    return f"transformers {transformers.__version__}"


def draw(path: Path, shares: Sequence[Shares], name: str) -> bool:
    """Kept rows per layer as a chart, a PNG file. False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return False
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    axes = figure.subplots()
    layers, (attend, ffn, cache) = range(len(shares)), zip(*shares)
    axes.bar(layers, attend, color="#9ecae1", label="vision rows that attend")
    axes.plot(layers, ffn, "o", color="#08519c", markersize=4, label="vision rows in the FFN")
    axes.plot(layers, cache, "_", color="#d94801", markersize=8, markeredgewidth=2, label="rows in the KV cache")
    axes.set(title=name, xlabel="decoder layer", ylabel="kept", ylim=(0, 1.05))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=3, frameon=False, fontsize=8)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=120)
    return True
