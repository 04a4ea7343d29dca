"""All methods by name, and the one place that turns a name, dict, YAML file or object into a method."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from vtskip.config import parse, read_yaml
from vtskip.errors import ConfigError, nearest
from vtskip.methods.aim import AIM
from vtskip.methods.base import LayerPlanner, Method
from vtskip.methods.baselines import EarlyExit, LayerSkip, Random, Uniform
from vtskip.methods.compose import Compose
from vtskip.methods.dense import Dense
from vtskip.methods.dynamic_llava import DynamicLlava
from vtskip.methods.fastv import FastV
from vtskip.methods.gamma_mod import GammaMod
from vtskip.methods.globalcom2 import GlobalCom2
from vtskip.methods.mindskip import MindSkip
from vtskip.methods.mod import Mod
from vtskip.methods.pmod import PMod
from vtskip.methods.pyramid_drop import PyramidDrop
from vtskip.methods.shortv import ShortV
from vtskip.methods.skip_ffn import SkipFFN
from vtskip.methods.skip_vision import SkipVision

METHODS: dict[str, type[Method]] = {
    "dense": Dense,
    "mod": Mod,
    "pmod": PMod,
    "gamma_mod": GammaMod,
    "mindskip": MindSkip,
    "shortv": ShortV,
    "fastv": FastV,
    "pyramid_drop": PyramidDrop,
    "aim": AIM,
    "globalcom2": GlobalCom2,
    "skip_ffn": SkipFFN,
    "skip_vision": SkipVision,
    "dynamic_llava": DynamicLlava,
    "random": Random,
    "uniform": Uniform,
    "layer_skip": LayerSkip,
    "early_exit": EarlyExit,
    "compose": Compose,
}

__all__ = ["METHODS", "LayerPlanner", "Method", "MethodSpec", "get_method"]


def get_method(spec: Method | dict[str, Any] | str | Path | Sequence[Any]) -> Method:
    """A method from itself, a dict with ``name``, a name (its defaults), the path of a YAML file, or a list of such.

    Raises ConfigError that names the unknown method or key and the nearest one that exists.
    """
    if isinstance(spec, Method):
        return spec
    if isinstance(spec, str) and not spec.endswith((".yaml", ".yml")):
        spec = {"name": spec}
    if isinstance(spec, list | tuple):
        spec = {"name": "compose", "methods": list(spec)}
    if not isinstance(spec, dict | str | Path):
        raise ConfigError(
            f"method {spec!r}: accepted: a mapping with 'name', a name, the path of a YAML file, or a list of such"
        )
    source = "method" if isinstance(spec, dict) else str(spec)
    values = dict(spec) if isinstance(spec, dict) else read_yaml(spec)
    name = values.get("name")
    if name not in METHODS:
        raise ConfigError(
            f"{source}: unknown method {name!r}{nearest(str(name), METHODS)}; known: {', '.join(METHODS)}"
        )
    return parse(METHODS[name], values, f"{source} {name!r}" if source == "method" else source)


def _checked(spec: str | dict[str, Any] | list[Any]) -> str | dict[str, Any] | list[Any]:
    get_method(spec)
    return spec


# The type of a `method:` key in a configuration: checked when the file is read, before anything is made or loaded.
MethodSpec = Annotated[str | dict[str, Any] | list[str | dict[str, Any]], AfterValidator(_checked)]
