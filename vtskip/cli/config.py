"""``vtskip config``: the shipped configuration files, and what may stand in one."""

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="List, copy and describe configuration files.", no_args_is_help=True)
SCHEMAS = {
    "train": ("vtskip.train.config", "TrainConfig"),
    "eval": ("vtskip.eval.config", "EvalConfig"),
    "stream": ("vtskip.streaming.config", "StreamConfig"),
    "data": ("vtskip.data.config", "DataConfig"),
}


@app.command("ls")
def ls(
    kind: Annotated[str | None, typer.Argument(help="train, methods, eval, stream, data, deepspeed, ...")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list, and nothing else")] = False,
) -> None:
    """List the shipped files with the first line of each."""
    from vtskip._shipped import about, shipped
    from vtskip.cli.listing import show
    from vtskip.errors import ConfigError, nearest

    rows: list[dict[str, Any]] = [
        {"name": name, "about": about(path), "path": str(path)} for name, path in shipped(kind).items()
    ]
    if not rows:
        kinds = sorted({name.partition("/")[0] for name in shipped()})
        raise ConfigError(f"no kind {kind!r}{nearest(str(kind), kinds)}; accepted: {', '.join(kinds)}")
    show(rows, {"name": "name", "about": "what it is for"}, as_json, "shipped configurations")


@app.command("cp")
def cp(
    name: Annotated[str, typer.Argument(help="as in `vtskip config ls`: train/demo_mod, or demo_mod")],
    dest: Annotated[Path | None, typer.Argument(help="file or folder; here by default")] = None,
) -> None:
    """Copy a shipped file, to be changed. An existing file is not overwritten."""
    from vtskip._files import write_atomic
    from vtskip._shipped import find_shipped
    from vtskip.errors import ConfigError

    source = find_shipped(name)
    place = (dest or Path()) / source.name if dest is None or dest.is_dir() else dest
    if place.exists():
        raise ConfigError(f"{place}: exists already; give another name, or remove it first")
    write_atomic(place, source.read_bytes())
    print(place)


@app.command("schema")
def schema(kind: Annotated[str, typer.Argument(help=", ".join(SCHEMAS))] = "train") -> None:
    """Print the JSON schema of a kind of file, for editors (yaml-language-server) and programs."""
    import json
    from importlib import import_module

    from vtskip.errors import ConfigError, nearest

    if kind not in SCHEMAS:
        raise ConfigError(f"schema {kind!r}{nearest(kind, SCHEMAS)}; accepted: {', '.join(SCHEMAS)}")
    module, name = SCHEMAS[kind]
    made = getattr(import_module(module), name).model_json_schema()
    print(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema"} | made, indent=2))
