"""``vtskip models``: what a method can be attached to, and what is refused."""

from typing import Annotated

import typer


def command(
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list, and nothing else")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the README's table, and nothing else")] = False,
) -> None:
    """List the model families: Hugging Face class, text backbones, images or video, groups; and the refused classes."""
    from vtskip.cli.listing import show
    from vtskip.models.families import FAMILIES, TEXT_CLASSES
    from vtskip.models.refused import REFUSED

    rows = [
        {
            "name": family.name,
            "model_class": family.model_class,
            "text": list(family.text),
            "vision": family.vision,
            "groups": list(family.by),
            "refused": None,
        }
        for family in FAMILIES.values()
    ]
    nothing: dict[str, list] = {"text": [], "vision": [], "groups": []}
    refused = [{"name": name, "model_class": name, **nothing, "refused": why} for name, why in REFUSED.items()]
    columns = {"name": "family", "model_class": "class", "text": "text layers", "groups": "grouped by"}
    if markdown:
        print(table(rows))
    elif as_json:
        show([*rows, *refused], columns, True, "")
    else:
        show(rows, columns, False, "model families")
        print(f"Text models, with rows given by hand (Handle.rows): {', '.join(TEXT_CLASSES)}\n")
        show(refused, {"name": "class", "refused": "reason"}, False, "refused")


def table(rows: list[dict]) -> str:
    """The supported families as a Markdown table."""
    lines = ["| class | text layers | takes | vision rows are grouped by |", "|---|---|---|---|"]
    for row in rows:
        here = " (here)" if row["model_class"] == "StreamingLlava" else ""
        cells = [f"`{row['model_class']}`{here}", *(", ".join(row[key]) for key in ("text", "vision", "groups"))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
