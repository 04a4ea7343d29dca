"""What ``vtskip train --dry-run`` prints."""

from typing import Any

import yaml
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

MOST = 60  # rows of a sample


def show(found: dict[str, Any]) -> None:
    """The resolved configuration, what learns, two samples, the first step, the checkpoint and the estimate."""
    console = Console(highlight=False)
    console.print(Text(yaml.safe_dump(found["config"], sort_keys=False)))
    console.print(parameters(found["parameters"]))
    for sample in found["samples"]:
        console.print(tokens(sample))
    step, saved = found["step"], found["checkpoint"]
    console.print(
        f"first step: loss {step['loss']:.4f}, gradient norm {step['gradient_norm']:.4g}, {step['samples']} samples of "
        f"{step['tokens']} tokens"
    )
    for fault in found["broken"].values():
        console.print(Text(f"  skipped: {fault}"))
    if silent := step["without_gradient"]:
        console.print(Text(f"  no gradient in this batch: {len(silent)} tensors ({', '.join(silent[:3])}, ...)"))
    console.print(
        f"checkpoint: {saved['bytes'] / 1e6:,.1f} MB, written, read back and equal ({saved['seconds']:.1f} s)"
    )
    console.print(costs(found["estimate"], found["conversations"]))


def parameters(rows: list[dict[str, Any]]) -> Table:
    table = Table("part", title="what learns", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("trained", "in adapters", "all", "tensors", "lr"):
        table.add_column(name, justify="right")
    total = {key: sum(row[key] for row in rows) for key in ("trained", "adapters", "all", "tensors")}
    for row in [*rows, {"part": "sum", "lr": [], **total}]:
        numbers = [f"{row[key]:,}" for key in ("trained", "adapters", "all", "tensors")]
        table.add_row(row["part"], *numbers, ", ".join(f"{lr:g}" for lr in row["lr"]))
    return table


def tokens(sample: dict[str, Any]) -> Table:
    """One line per token; the placeholders of a frame or image are one, and so is text of which nothing is taught."""
    title = f"{sample['uid']}: {sample['tokens']} tokens, {sample['learned']} learned"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("place", "token", "label", "vision", "kept in routed layers"):
        table.add_column(name, justify="right" if name == "place" else "left", overflow="fold")
    for row in sample["rows"][:MOST]:
        many = f" x {row['count']}" if row["count"] > 1 and row["vision"] else ""
        kept = f"{row['kept']:.2f}" if row["vision"] else "1"
        table.add_row(
            str(row["place"]),
            Text(repr(row["token"])[1:-1] + many),
            Text(repr(row["label"])[1:-1]),
            f"group {row['vision']}" if row["vision"] else "",
            kept,
        )
    if len(sample["rows"]) > MOST:
        table.add_row("", f"and {len(sample['rows']) - MOST} more lines")
    return table


def costs(found: dict[str, Any], conversations: dict[str, int]) -> Group:
    memory = ", ".join(f"{name} {size:.3g}" for name, size in found["gib_per_process"].items())
    hours, processes = found["hours"], found["processes"]
    many = "for 1 process" if processes == 1 else f"for {processes} processes"
    length = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
    return Group(
        Text(f"{conversations['train']} conversations to train on, {conversations['validation']} to validate"),
        Text(f"estimate (from the cost model and this step, no measurement) {many}:"),
        Text(f"  GiB per process: {memory}"),
        Text(
            f"  {found['steps']} steps of {found['flops_per_step_and_process']:.3g} FLOPs per process, "
            f"{found['flops_ratio']:.2f} of dense; {length} at this step's speed"
        ),
    )
