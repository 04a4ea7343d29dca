"""``vtskip methods``: what can be attached."""

from typing import Annotated

import typer


def command(
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list, and nothing else")] = False,
) -> None:
    """List the methods: what each skips, whether it is trained, its options and defaults."""
    import inspect

    from pydantic_core import PydanticUndefined, to_jsonable_python

    from vtskip.cli.listing import show
    from vtskip.methods import METHODS

    rows = []
    for name, cls in METHODS.items():
        fields = {key: field for key, field in cls.model_fields.items() if key != "name"}
        required = [key for key, field in fields.items() if field.is_required()]
        defaults = {k: f.get_default(call_default_factory=True, validated_data={}) for k, f in fields.items()}
        rows.append(
            {
                "name": name,
                "summary": (inspect.getdoc(cls) or "").partition("\n")[0],
                "skips": cls.skips,
                "trained": cls.trained,
                "paper": cls.paper or None,
                "required": required,
                "defaults": to_jsonable_python({k: v for k, v in defaults.items() if v is not PydanticUndefined}),
            }
        )
    columns = {"name": "method", "skips": "skips", "trained": "trained", "paper": "paper"}
    show(rows, columns, as_json, "methods: vtskip.attach(model, NAME), options in --json")
