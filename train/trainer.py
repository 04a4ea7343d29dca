"""The Hugging Face Trainer with learning rates per part, and checkpoints that hold the method beside the model."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerState

from vtskip.errors import ConfigError
from vtskip.models.families import unwrap
from vtskip.models.streaming_llava import StreamingLlava
from vtskip.runtime.attach import attached
from vtskip.saving import method_parameters, save_pretrained
from vtskip.train.config import Optim
from vtskip.train.parts import parameter_groups
from vtskip.train.weights import read_weights, write_weights

METHOD_PARAMETER = re.compile(r"layers\.(\d+)\.vtskip\.(.+)$")


class StreamTrainer(Trainer):
    """Loss from the model. ``optim`` sets the learning rate of each part."""

    def __init__(self, *args: Any, optim: Optim, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.optim = optim
        # A StreamingLlava's labels come shifted from its template; stock models shift them in their loss.
        self._loss_shifts_labels = not isinstance(unwrap(self.model), StreamingLlava)

    def fit(self, checkpoint: Path | None = None) -> None:
        """Train from the start or from ``checkpoint``, and write the model to the run's folder.

        Raises ConfigError for a DeepSpeed run that has taken all its steps: its engine comes only with a step.
        """
        done = json.loads((checkpoint / "trainer_state.json").read_text()) if checkpoint else {"global_step": 0}
        if checkpoint and done["global_step"] >= done["max_steps"]:  # transformers would take one step too many
            if self.is_deepspeed_enabled:
                raise ConfigError(f"{checkpoint}: all {done['max_steps']} steps are done; that folder holds the model")
            self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            self._load_from_checkpoint(str(checkpoint))
        else:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        self.save_model()

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
            save_pretrained(self.model, folder, state=state, card=folder == Path(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        read_weights(model or self.model, Path(resume_from_checkpoint))


def method_part(state_dict: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The attached method's parameters in a gathered state dict, by their canonical keys ``layers.{i}.router.weight``."""
    found = {k: METHOD_PARAMETER.search(k) for k in state_dict or {}}
    return {f"layers.{m[1]}.{m[2]}": (state_dict or {})[k] for k, m in found.items() if m}
