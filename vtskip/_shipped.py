"""The configuration files that come with the package, by name."""

from importlib.resources import files
from pathlib import Path

from vtskip.errors import ConfigError, nearest


def shipped(kind: str | None = None) -> dict[str, Path]:
    """``train/demo_mod`` -> its file, for all kinds or one of them (``train``, ``methods``, ...)."""
    root = Path(str(files("vtskip.configs")))
    found = sorted(p for p in root.glob("*/*") if p.suffix in (".yaml", ".json"))
    names = {f"{p.parent.name}/{p.stem}": p for p in found}
    return {name: path for name, path in names.items() if kind in (None, name.partition("/")[0])}


def find_shipped(name: str, kind: str | None = None) -> Path:
    """The file called ``name``, with its kind (``train/demo_mod``) or without. Raises ConfigError with the nearest name."""
    files_by_name = shipped(kind)
    plain = name.removesuffix(".yaml").removesuffix(".json").removeprefix("configs/")
    matches = [full for full in files_by_name if plain in (full, full.partition("/")[2])]
    if len(matches) == 1:
        return files_by_name[matches[0]]
    if matches:
        raise ConfigError(f"{name}: there are several: {', '.join(matches)}")
    options = [*files_by_name, *(full.partition("/")[2] for full in files_by_name)]
    raise ConfigError(
        f"{name}: no such file, nor a shipped name{nearest(plain, options)}; `vtskip config ls` lists them"
    )


def file_or_shipped(name: str | Path, kind: str) -> Path:
    """``name`` itself where there is such a file, else the shipped one of that kind."""
    path = Path(name)
    if path.exists() or path.parent != Path() or path.suffix in (".yaml", ".yml", ".json"):
        return path
    return find_shipped(str(name), kind)


def about(path: Path) -> str:
    """The first line of a file's comment, a JSON file's name."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ").strip() if first.startswith("# ") else path.stem
