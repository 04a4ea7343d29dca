"""The data sections of a configuration: of a file of its own, or inside one for training, calibration or evaluation."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from vtskip.config import apply_overrides, parse, read_yaml
from vtskip.data.config import DataConfig
from vtskip.errors import ConfigError, nearest

SECTIONS = ("data", "validation")


def data_sections(config: str | Path, overrides: Sequence[str] = ()) -> dict[str, DataConfig]:
    """``data`` and, where there is one, ``validation`` of a YAML file or of a shipped ``configs/data/NAME.yaml``; of a list of
    data sets ``data.0``, ``data.1`` and so on.

    Raises ConfigError for an unknown name, a file without such a section, or a fault in one.
    """
    path = Path(config)
    if not path.is_file():
        folder = Path(str(files("vtskip.configs") / "data"))
        names = sorted(p.stem for p in folder.glob("*.yaml"))
        if str(config) not in names:
            raise ConfigError(
                f"{config}: no such file, nor a name{nearest(str(config), names)}; names: {', '.join(names)}"
            )
        path = folder / f"{config}.yaml"
    values = read_yaml(path)
    if "kind" in values:
        return {"data": parse(DataConfig, apply_overrides(values, list(overrides), DataConfig), str(path))}
    apply_overrides(values, list(overrides))
    found = {key: values[key] for key in SECTIONS if isinstance(values.get(key), dict)}
    for i, part in enumerate(values["data"] if isinstance(values.get("data"), list) else []):  # of several data sets
        found[f"data.{i}"] = {k: v for k, v in part.items() if k != "weight"} if isinstance(part, dict) else part
    if not found:
        raise ConfigError(f"{path}: neither a data section ('data') nor one itself ('kind')")
    return {key: parse(DataConfig, section, f"{path}: {key}") for key, section in found.items()}
