"""``vtskip cost``: FLOPs and KV bytes of a model under each method, from its configuration alone."""

from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Argument(help="a folder or Hub id with config.json, or a shape of vtskip bench")],
    methods: Annotated[
        list[str] | None, typer.Argument(help="names, YAML files or '{name: mod, keep: 0.3}'; all presets if none")
    ] = None,
    vision_rows: Annotated[
        int | None, typer.Option(min=1, help="vision rows of the prompt [576, or the shape's]")
    ] = None,
    groups: Annotated[
        int | None, typer.Option(min=1, help="frames or images they belong to [1, or the shape's]")
    ] = None,
    text_rows: Annotated[int | None, typer.Option(min=2, help="text rows of the prompt [64, or the shape's]")] = None,
    lossless: Annotated[bool, typer.Option(help="count vtskip's lossless savings (docs/lossless.md)")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list, and nothing else")] = False,
) -> None:
    """Show what a prefill costs under each method: FLOPs and KV bytes of decoder and LM head, by the cost model.

    No weights are read and nothing runs. FLOPs count one multiply-add as two operations and attention in full.
    """
    from vtskip.cli.listing import show
    from vtskip.eval.bench.costs import costs_of, model_and_prompt

    given = {"vision_rows": vision_rows, "groups": groups, "text_rows": text_rows}
    built, prompt = model_and_prompt(model, {key: value for key, value in given.items() if value is not None})
    rows = costs_of(built, prompt, methods or [], lossless)
    columns = {
        "name": "method",
        "tflops": "TFLOPs",
        "flops_ratio": "ratio",
        "linear_ratio": "of weights alone",
        "kv_mb": "KV MB",
        "kv_ratio": "ratio ",
    }
    rounded = [{k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    size = f"{prompt.text_rows} text and {prompt.vision_rows} vision rows in {prompt.groups} group(s)"
    show(rows if as_json else rounded, columns, as_json, f"{model}: one prompt of {size}")
    if not as_json:
        print(*(f"{row['name']}: {row['note']}" for row in rows if row["note"]), sep="\n")
