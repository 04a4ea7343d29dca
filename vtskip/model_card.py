"""The model card of a saved method: what it skips where, what that costs, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from vtskip._files import replacing, write_atomic
from vtskip.estimate import Prompt, prefill_report
from vtskip.methods.compose import methods_of
from vtskip.runtime.attach import Handle
from vtskip.runtime.report import LayerReport, Report

CARD_NAME, PICTURE_NAME = "README.md", "vtskip_plan.png"
BEGIN, END = "<!-- vtskip: written by save_pretrained, down to the end mark -->", "<!-- vtskip: end -->"
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
    """The report of what ran, or of a prompt like LLaVA-1.5's, and a sentence that says which."""
    report = handle.report()
    if report.forwards:  # 0 after a reset, as a run's trainer leaves it
        return report, f"Both tables are measured; forwards since the method was attached: {report.forwards}."
    prompt = Prompt()
    report, other = prefill_report(handle, prompt), prefill_report(handle, prompt, seed=1)
    size = f"{prompt.text_rows} text rows and an image of {prompt.vision_rows} rows"
    said = f"Both tables are from the cost model, for one prompt of {size}."
    if report != other:
        said += " How many rows this method keeps depends on the rows, which here are random."
    return report, said


def kept_shares(layer: LayerReport) -> Shares:
    """Vision rows that attend, vision rows that run the FFN, and all rows that enter the KV cache, each in [0, 1]."""
    return layer.kept, layer.kept_ffn, layer.cache / layer.rows if layer.rows else 1.0


# -- the parts of the card -----------------------------------------------------------------------------------------------


def front_matter(config: dict[str, Any]) -> str:
    """Metadata for the Hub. A base model that is a local path is not named: the Hub accepts ids only."""
    lines = ["---", "library_name: vtskip"]
    if on_hub(config["base"]["name_or_path"]):
        lines.append(f"base_model: {config['base']['name_or_path']}")
    names = [config["method"]["name"], *(part["name"] for part in config["method"].get("methods", []))]
    return "\n".join([*lines, "tags:", "- vtskip", *(f"- {name}" for name in dict.fromkeys(names)), "---", ""])


def on_hub(name: str | None) -> bool:
    return (
        bool(name)
        and str(name).count("/") == 1
        and not str(name).startswith((".", "/"))
        and not Path(str(name)).exists()
    )


def about(handle: Handle, config: dict[str, Any]) -> list[str]:
    base = config["base"]
    kinds = [cast(Any, type(method)) for method in methods_of(handle.method)]
    options = {k: v for k, v in config["method"].items() if k != "name"}
    said = [f"{first_line(kind)}{f' The method is {kind.paper}.' if kind.paper else ''}" for kind in kinds]
    skipped = "; ".join(dict.fromkeys(kind.skips for kind in kinds if kind.skips)) or "nothing"
    name = base["name_or_path"] or "a model built in memory"
    at = f" at revision `{base['revision']}`" if base["revision"] else ""
    trained = "trained parameters" if any(kind.trained for kind in kinds) else "no trained parameters"
    return [
        f"# {' + '.join(f'`{method.name}`' for method in methods_of(handle.method))} for {base['model_class']}",
        f"{' '.join(said)} Skipped: {skipped}. It holds {trained} and belongs to "
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
