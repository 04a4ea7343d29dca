"""A checkpoint folder as something that streams: model, template, and a method that may differ from the saved one."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from vtskip.errors import CheckpointError, ConfigError, one_line
from vtskip.loading import load
from vtskip.methods import Method, get_method
from vtskip.methods.compose import methods_of
from vtskip.runtime.attach import Handle, attach
from vtskip.saving import method_state
from vtskip.template import StreamTemplate

PLACE = re.compile(r"(layers\.\d+\.)methods\.(\d+)\.")  # of a parameter in a composition
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


@dataclass
class StreamCheckpoint:
    """A model ready to stream. A method is always attached (``dense`` if none was saved), so that costs are measured."""

    model: Any
    template: StreamTemplate
    handle: Handle
    trained: dict[str, torch.Tensor]
    trained_names: list[str]

    @property
    def method(self) -> Method:
        """The method attached now."""
        return cast(Method, self.handle.method)

    def use(self, spec: Method | dict[str, Any] | str | Path | list[Any]) -> bool:
        """Attach another method instead. The parameters of the saved one are reused where name and shapes fit.

        Returns False if the new method has parameters of its own that nobody trained.
        """
        method = get_method(spec)
        self.handle.detach()
        self.handle = attach(self.model, method)
        own = by_router(method_state(self.model))
        fits = routed(self.handle) == self.trained_names and all(
            k in self.trained and self.trained[k].shape == t.shape for k, t in own.items()
        )
        if fits:
            with torch.no_grad():
                for key, tensor in own.items():
                    tensor.copy_(self.trained[key])
        return fits or not own


def routed(handle: Handle) -> list[str]:
    """Names of the attached methods that have parameters."""
    methods = methods_of(handle.method)
    return [m.name for m in methods if any(any(True for _ in p.parameters()) for p in m.planners(handle.shape) if p)]


def by_router(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parameters by the number of their method among those that have some: methods without may stand beside them."""
    found = {key: PLACE.match(key) for key in state}
    places = sorted({int(match[2]) for match in found.values() if match})

    def numbered(key: str) -> str:
        match = found[key]
        return key if match is None else f"{match[1]}{places.index(int(match[2]))}:{key[match.end() :]}"

    return {numbered(key).replace(".0:", "."): tensor for key, tensor in state.items()}


def load_stream(folder: str | Path, device: str = "auto", dtype: str = "auto") -> StreamCheckpoint:
    """Load a folder written by ``vtskip train``, with its saved method attached.

    Raises CheckpointError if it holds no model or tokenizer, ConfigError for an unknown device or dtype.
    """
    from transformers import AutoTokenizer

    place, kwargs = pick_device(device), {} if dtype == "auto" else {"dtype": _dtype(dtype)}
    model, handle = load(folder, **kwargs)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as e:
        raise CheckpointError(f"{folder}: no tokenizer beside the model ({one_line(e)})") from None
    if handle is None:
        handle = attach(model, "dense")
    model.to(place)
    template = StreamTemplate.from_config(tokenizer, model.config)
    state = {k: t.detach().clone() for k, t in by_router(method_state(model)).items()}
    return StreamCheckpoint(model, template, handle, state, routed(handle))


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU if there is one. Raises ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ConfigError(f"device {name!r}: {str(e).splitlines()[0]}; accepted: auto, cpu, cuda, cuda:N") from None
    return device


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r}; accepted: {', '.join(DTYPES)}")
    return getattr(torch, name)
