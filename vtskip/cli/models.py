"""``vtskip models``: what a method can be attached to."""

from typing import Annotated

import typer


def command(
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list, and nothing else")] = False,
) -> None:
    """List the model families: Hugging Face class, text backbones, images or video."""
    from vtskip.cli.listing import show
    from vtskip.models.families import FAMILIES

    rows = [
        {
            "name": family.name,
            "model_class": family.model_class,
            "text": list(family.text),
            "vision": family.vision,
        }
        for family in FAMILIES.values()
    ]
    columns = {"name": "family", "model_class": "class", "text": "text layers", "vision": "vision"}
    show(rows, columns, as_json, "model families")
