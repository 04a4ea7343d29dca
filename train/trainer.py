"""The Hugging Face Trainer with learning rates per part, and checkpoints that hold the method beside the model."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerState

from vtskip.errors import ConfigError
from vtskip.loading import load_state
from vtskip.runtime.attach import attached
from vtskip.saving import WEIGHTS_NAME, method_parameters, save_pretrained
from vtskip.train.build import part_of
from vtskip.train.config import Optim

METHOD_PARAMETER = re.compile(r"layers\.(\d+)\.vtskip\.(.+)$")


class StreamTrainer(Trainer):
    """Loss from the model. ``optim`` sets the learning rate of each part."""

    def __init__(self, *args: Any, optim: Optim, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.optim = optim
        self._loss_shifts_labels = False  # the template shifts them

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
        super()._save(output_dir, state_dict)
        if self.args.should_save and attached(self.model) is not None:
            folder, gathered = Path(output_dir or self.args.output_dir), method_part(state_dict)
            state = {key: gathered[key] for key in method_parameters(self.model)} if gathered else None
            save_pretrained(self.model, folder, state=state, card=folder == Path(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if attached(self.model) is not None:
            load_state(self.model, Path(resume_from_checkpoint) / WEIGHTS_NAME)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Method parameters are no missing keys: they come from their own file."""
        missing = [k for k in load_result.missing_keys if METHOD_PARAMETER.search(k) is None]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))


def method_part(state_dict: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The attached method's parameters in a gathered state dict, by their canonical keys ``layers.{i}.router.weight``."""
    found = {k: METHOD_PARAMETER.search(k) for k in state_dict or {}}
    return {f"layers.{m[1]}.{m[2]}": (state_dict or {})[k] for k, m in found.items() if m}


def parameter_groups(model: nn.Module, optim: Optim) -> list[dict[str, Any]]:
    """Trainable parameters by part (its learning rate) and by decay: matrices decay, biases, norms and embeddings do not."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and id(parameter) not in tables and "embed" not in name.rpartition(".")[2]
            groups.setdefault((part_of(name.removeprefix("module.")), decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": getattr(optim.lrs, part) or optim.lr,
            "weight_decay": optim.weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
    ]
