"""Scores kept from prompt to prompt, and the check that an earlier run's are of this model, data and configuration."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from vtskip.calibrate.config import CalibrateConfig
from vtskip.data import Sample
from vtskip.errors import ConfigError
from vtskip.saving import base_facts
from vtskip.streaming.loading import StreamCheckpoint


def made_with(config: CalibrateConfig, checkpoint: StreamCheckpoint) -> dict[str, Any]:
    """What the scores depend on: the configuration but for where they go and what is chosen by them, and the model."""
    model = checkpoint.model
    facts = {**base_facts(model), "frame_tokens": model.config.frame_tokens, "weights": fingerprint(model)}
    return {"config": config.model_dump(mode="json", exclude={"out", "choose"}), "model": facts}


def fingerprint(model: nn.Module) -> str:
    """A hash over names, shapes and about 64 values of every parameter: tells trainings apart without reading it all."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        digest.update(f"{name}{list(parameter.shape)}".encode())
        digest.update(flat[:: max(1, len(flat) // 64)].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_kept(path: Path, made: dict[str, Any], prompts: list[Sample]) -> list[dict[str, Any]]:
    """Records of an earlier run. Raises ConfigError naming what differs if they are not of this one."""
    if not path.is_file():
        return []
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        before, kept = flat(stored["made_with"]), list(stored["prompts"])
        uids = [record["uid"] for record in kept]
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(
            f"{path}: not a file of scores ({type(e).__name__}: {e}); remove it or use --no-resume"
        ) from None
    now = flat(made)
    for key in [*now, *before]:
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{path} was made with {key} {before.get(key)!r}, this run has {now.get(key)!r}: use the same, another "
                "'out', or --no-resume to start anew"
            )
    if uids != [prompt.uid for prompt in prompts[: len(uids)]]:
        raise ConfigError(f"{path} holds other prompts than 'data' gives now: use another 'out', or --no-resume")
    return kept


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested mappings, without the word ``config`` in front."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        name = "" if not prefix and key == "config" else f"{prefix}{key}"
        out |= flat(value, f"{name}." if name else "") if isinstance(value, dict) else {name: value}
    return out
