"""``vtskip calibrate``: score the layers of a checkpoint on prompts of its data, prompt by prompt, and write a method.

A run that was interrupted goes on from the scores it kept and ends with the same files as one that was not.
"""

import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import vtskip
from vtskip._files import write_atomic
from vtskip.calibrate.arank import AttentionRanks, attention_ranks
from vtskip.calibrate.config import CalibrateConfig
from vtskip.calibrate.contribution import LayerContribution, contributions
from vtskip.calibrate.kept import made_with, read_kept
from vtskip.calibrate.prompts import draw, inputs_of, prompts_of
from vtskip.calibrate.scores import LayerScores
from vtskip.data import Sample, build
from vtskip.errors import CheckpointError, ConfigError
from vtskip.streaming.loading import StreamCheckpoint, load_stream

SCORES, RESULT, PICTURE, METHOD = "scores.json", "calibration.json", "calibration.png", "method.yaml"
Progress = Callable[[int, int], None]


def run(config: CalibrateConfig, progress: Progress | None = None, resume: bool = True) -> dict[str, Any]:
    """Calibrate, write the files of ``config.out`` and return what calibration.json holds.

    ``progress(done, total)`` is called after every prompt. ``resume`` goes on from the scores in the folder; without it
    they are discarded. Raises ConfigError if the folder holds scores of another configuration, model or data.
    """
    checkpoint = open_checkpoint(config)
    prompts = draw(prompts_of(build(config.clips)), config.prompts, config.seed)
    made = made_with(config, checkpoint)
    kept = read_kept(config.out / SCORES, made, prompts) if resume else []
    if progress:
        progress(len(kept), len(prompts))
    for record in score(config, checkpoint, prompts[len(kept) :]):
        kept.append(record)
        write_json(config.out / SCORES, {"made_with": made, "prompts": kept})
        if progress:
            progress(len(kept), len(prompts))
    scores = layer_scores(config, kept)
    result = result_of(config, made["model"], kept, scores)
    from vtskip.calibrate.plot import picture

    write_atomic(config.out / PICTURE, picture(scores, result["layers"], config.score))
    write_atomic(config.out / METHOD, method_yaml(config, result["layers"]).encode())
    write_json(config.out / RESULT, result)
    return result


def open_checkpoint(config: CalibrateConfig) -> StreamCheckpoint:
    """The checkpoint without its method. Raises ConfigError for a model that the data pipeline cannot feed."""
    from transformers import AutoConfig

    from vtskip.models.streaming_llava import StreamingLlavaConfig

    try:
        kind = AutoConfig.from_pretrained(config.model).model_type
    except (OSError, ValueError) as e:
        raise CheckpointError(f"model {config.model!r}: no model there ({' '.join(str(e).split())})") from None
    if kind != StreamingLlavaConfig.model_type:
        raise ConfigError(
            f"model {config.model!r} is a {kind} model: clips of a data section only feed streaming_llava checkpoints; give "
            "inputs of its own processor to vtskip.calibrate.layer_contribution(model, samples) or arank in Python"
        )
    folder = config.model
    if not Path(folder).is_dir():
        from huggingface_hub import snapshot_download

        folder = snapshot_download(config.model)
    checkpoint = load_stream(folder, config.device, config.dtype)
    checkpoint.handle.detach()
    return checkpoint


def score(config: CalibrateConfig, checkpoint: StreamCheckpoint, prompts: list[Sample]) -> Iterator[dict[str, Any]]:
    """One record per prompt: who it is, how long, and the number of every layer."""
    shown: list[dict[str, Any]] = []

    def samples() -> Iterator[dict[str, Any]]:
        for prompt in prompts:
            inputs = inputs_of(checkpoint, prompt, config.end)
            ids = inputs["input_ids"]
            vision = int((ids == checkpoint.model.config.frame_id).sum())
            shown.append({"uid": prompt.uid, "rows": ids.shape[1], "vision_rows": vision})
            yield inputs

    if config.score == "arank":
        for ranks, _ in attention_ranks(checkpoint.model, samples()):
            yield shown[-1] | {"values": ranks.tolist()}
    else:
        for values in contributions(checkpoint.model, samples(), config.direction):
            yield shown[-1] | {"values": values.tolist()}


def layer_scores(config: CalibrateConfig, kept: list[dict[str, Any]]) -> LayerScores:
    values = torch.tensor([record["values"] for record in kept], dtype=torch.float64)
    if config.score != "arank":
        return LayerContribution(values)
    lengths = torch.tensor([record["rows"] for record in kept])
    return AttentionRanks(values / lengths[:, None], lengths)


def result_of(
    config: CalibrateConfig, model: dict[str, Any], kept: list[dict[str, Any]], scores: LayerScores
) -> dict[str, Any]:
    """What calibration.json holds: nothing in it depends on when and in how many runs it was made."""
    return {
        "score": config.score,
        **({"direction": config.direction} if config.score == "layer_contribution" else {}),
        "layers": scores.layers(**config.rule),
        "choose": config.rule,
        "order": scores.order,
        "mean": scores.mean.tolist(),
        **({"mean_rank": scores.ranks.mean(0).tolist()} if isinstance(scores, AttentionRanks) else {}),
        "prompts": kept,
        "model": model,
        "data": config.clips.model_dump(mode="json"),
        "seed": config.seed,
        "versions": {"vtskip": vtskip.__version__, **{name: version(name) for name in ("torch", "transformers")}},
        "config": config.model_dump(mode="json"),
    }


def method_yaml(config: CalibrateConfig, layers: list[int]) -> str:
    """A method that skips in ``layers``."""
    rule = ", ".join(f"{key} {value}" for key, value in config.rule.items())
    about = f"{config.prompts} prompts, seed {config.seed}, {rule}; scores in {RESULT}"
    if config.score == "arank":
        head, body = (
            "gamma-MoD on the layers with low-rank attention",
            "name: gamma_mod\nschedule: {kind: list, layers: %s}",
        )
    else:
        head, body = "ShortV on the layers with the lowest Layer Contribution", "name: shortv\nlayers: %s"
    return f"# {head}: {about}.\n{body % layers}\n"


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())
