"""The cost model's table: what a prefill costs under each method, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vtskip._shipped import file_or_shipped, shipped
from vtskip.config import parse
from vtskip.errors import ModelError, VtskipError, nearest, one_line
from vtskip.estimate import Prompt, prefill_report, weightless
from vtskip.eval.bench.batch import build_model
from vtskip.eval.bench.config import Setting
from vtskip.eval.bench.shapes import SHAPES
from vtskip.loading import REPO_ID
from vtskip.methods import METHODS, Method, get_method
from vtskip.runtime.attach import attach


def model_and_prompt(name: str, given: dict[str, int]) -> tuple[nn.Module, Prompt]:
    """The model without weights, and the prompt: ``given``, else that of the shape of this name, else one image.

    Raises ModelError for what is neither a shape nor a folder or Hub repository with a model's configuration.
    """
    if name not in SHAPES:
        if not Path(name).is_dir() and not REPO_ID.fullmatch(name):
            known = f"{nearest(name, SHAPES)}; accepted: a folder, a Hub id OWNER/NAME, {', '.join(SHAPES)}"
            raise ModelError(f"{name}: no such folder or shape{known}")
        return weightless(name), Prompt(**{**asdict(Prompt()), **given})
    setting = parse(Setting, {"shape": name}, name)
    rows = {"text_rows": setting.text_rows, "vision_rows": setting.vision_rows, "groups": setting.frames}
    return build_model(setting, "meta", torch.bfloat16, 0), Prompt(**{**rows, **given})


def costs_of(model: nn.Module, prompt: Prompt, methods: Sequence[str], lossless: bool) -> list[dict[str, Any]]:
    """One row per method, ``dense`` first; all shipped files of methods where none is named.

    One that the model or its sizes refuse has the reason in ``note`` and no numbers. Raises ConfigError for what is no method.
    """
    named = methods or [path.stem for path in shipped("methods").values()]
    specs = {"dense": get_method("dense"), **{name: method_of(name) for name in named}}
    return [{"name": name, **cost_of(model, prompt, method, lossless)} for name, method in specs.items()]


def method_of(name: str) -> Method:
    """A method from its name, a shipped file's name, a path, or YAML in one line."""
    from vtskip._yaml import parse_yaml

    if name.startswith(("{", "[")):
        return get_method(parse_yaml(name, "method"))
    return get_method(name if name in METHODS else file_or_shipped(name, "methods"))


def cost_of(model: nn.Module, prompt: Prompt, method: Method, lossless: bool) -> dict[str, Any]:
    names = ("tflops", "flops_ratio", "linear_ratio", "kv_mb", "kv_ratio", "kept", "kept_ffn", "note")
    row: dict[str, Any] = dict.fromkeys(names)
    try:
        with attach(model, method, lossless=lossless) as handle:
            report, other = prefill_report(handle, prompt), prefill_report(handle, prompt, seed=1)
    except VtskipError as e:
        return row | {"note": one_line(e)}
    note = None if report == other else "depends on the rows: here random ones"
    if note is None and method.name != "dense" and report.flops_full == report.flops_full_dense:
        note = "leaves out nothing of this prompt" + (" before it is trained" if method.trained else "")
    return row | {
        "tflops": report.flops_full / 1e12,
        "flops_ratio": report.flops_ratio,
        "linear_ratio": report.flops_linear / report.flops_linear_dense,
        "kv_mb": report.kv_bytes / 1e6,
        "kv_ratio": report.kv_ratio,
        "kept": [layer.kept for layer in report.layers],
        "kept_ffn": [layer.kept_ffn for layer in report.layers],
        "note": note,
    }
