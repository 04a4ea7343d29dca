"""The trainer of a run: learning rates per part, and checkpoints that hold the method beside the model."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtskip.models.families import unwrap
from vtskip.models.streaming_llava import StreamingLlava
from vtskip.runtime.attach import attached
from vtskip.saving import method_parameters, save_pretrained
from vtskip.train.config import Optim
from vtskip.train.loop import RunTrainer
from vtskip.train.parts import parameter_groups
from vtskip.train.weights import read_weights, write_weights

METHOD_PARAMETER = re.compile(r"layers\.(\d+)\.vtskip\.(.+)$")


class StreamTrainer(RunTrainer):
    """Loss from the model. ``optim`` sets the learning rate of each part."""

    def __init__(self, *args: Any, optim: Optim, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.optim = optim
        # A StreamingLlava's labels come shifted from its template; stock models shift them in their loss.
        self._loss_shifts_labels = not isinstance(unwrap(self.model), StreamingLlava)

    optimizer: Any

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            kind, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(parameter_groups(model or self.model, self.optim), **kwargs)
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder, gathered = Path(output_dir or self.args.output_dir), method_part(state_dict)
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(self.model, folder, state_dict)
        self.processing_class.save_pretrained(folder)
        if attached(self.model) is not None:
            state = {key: gathered[key] for key in method_parameters(self.model)} if gathered else None
            whole_run = folder.name == self.out.name  # written in a folder of that name, then moved
            save_pretrained(self.model, folder, state=state, card=whole_run)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        read_weights(model or self.model, Path(resume_from_checkpoint))


def method_part(state_dict: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The attached method's parameters in a gathered state dict, by their canonical keys ``layers.{i}.router.weight``."""
    found = {k: METHOD_PARAMETER.search(k) for k in state_dict or {}}
    return {f"layers.{m[1]}.{m[2]}": (state_dict or {})[k] for k, m in found.items() if m}
