"""``vtskip methods``: what can be attached."""

from typing import Annotated, Any

import typer


def command(
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list, and nothing else")] = False,
) -> None:
    """List the methods (what each skips, whether it is trained, its published cost, options) and the presets of papers."""
    import inspect

    from pydantic_core import PydanticUndefined, to_jsonable_python

    from vtskip.cli.listing import show
    from vtskip.methods import METHODS

    folder, files = presets()
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
                "published": cls.published or None,
                "required": required,
                "defaults": to_jsonable_python({k: v for k, v in defaults.items() if v is not PydanticUndefined}),
                "presets": [
                    {"name": file["name"], "path": f"{folder}/{file['name']}", "about": file["about"]}
                    for file in files
                    if file["method"] == name
                ],
            }
        )
    columns = {
        "name": "method",
        "skips": "skips",
        "trained": "trained",
        "paper": "paper",
        "published": "published cost",
    }
    show(rows, columns, as_json, "methods: vtskip.attach(model, NAME), options in --json")
    if not as_json:
        columns = {"name": "file", "method": "method", "about": "what it is"}
        files = [file | {"about": file["about"].partition(". ")[0]} for file in files]
        show(files, columns, False, f"presets: vtskip.attach(model, PATH), PATH is a file in {folder}")


def presets() -> tuple[str, list[dict[str, Any]]]:
    """The folder of the shipped method files, and name, method and head comment of each."""
    from importlib.resources import files
    from pathlib import Path

    from vtskip.config import read_yaml

    folder = Path(str(files("vtskip.configs") / "methods"))
    found = []
    for path in sorted(folder.glob("*.yaml")):
        head = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        found.append({"name": path.name, "method": read_yaml(path)["name"], "about": " ".join(head)})
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder), found
