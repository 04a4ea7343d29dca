"""Training on precomputed features of the vision tower, and making them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vtskip.config import load_config
from vtskip.data.config import iterate
from vtskip.data.features import FeatureCache, FeatureSpec
from vtskip.data.sections import data_sections
from vtskip.errors import ConfigError, DataError, nearest
from vtskip.models.encoder_facts import encoder_facts
from vtskip.streaming.loading import load_stream, pick_device
from vtskip.streaming.model import LlavaStream
from vtskip.train.build import tower_options
from vtskip.train.config import TrainConfig

DTYPES = ("float32", "bfloat16", "float16")


def open_features(config: TrainConfig, model: Any) -> FeatureCache | None:
    """The cache that ``data.features`` names, None without one.

    Raises ConfigError where the tower is to be trained or the validation reads something else, DataError where the folder
    has no features of this very tower.
    """
    first, *others = [*config.sources, *([] if config.validation is None else [config.validation])]
    folder = first.features
    for number, other in enumerate(others, start=1):
        key = "validation" if other is config.validation else f"data.{number}"
        if other.features != folder:
            raise ConfigError(f"{key}.features {other.features}: has to be data.features ({folder})")
        if folder is not None and other.fps != first.fps:
            raise ConfigError(f"{key}.fps {other.fps}: with features it has to be data.fps ({first.fps})")
    if folder is None:
        return None
    if config.trains.vision:
        raise ConfigError(
            "data.features: the vision tower is not run, so it cannot be trained; set trains.vision=false"
        )
    cache = FeatureCache(folder, FeatureSpec(fps=first.fps, **encoder_facts(model)))
    cache.check()
    return cache


def fill_sections(
    config: str,
    overrides: list[str],
    model: str,
    out: Path | None,
    batch: int,
    dtype: str | None,
    device: str,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Make the features of every video in the configuration's data sections, and count.

    model: folder of a StreamingLlava, or the YAML file of a run, whose pretrained tower it is.

    A fault of a video stops the work unless its section says ``on_error: skip``. Raises VtskipError.
    """
    sections = data_sections(config, overrides)
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}{nearest(dtype, DTYPES)}; accepted: {', '.join(DTYPES)}")
    tower = tower_of(model).to(pick_device(device)) if Path(model).is_file() else load_stream(model, device).model
    stream, facts = LlavaStream(tower), encoder_facts(tower)
    counts: Counter[str] = Counter()
    faults: list[str] = []
    folder = None
    for name, section in sections.items():
        place = out or section.features
        if place is None:
            raise ConfigError(f"{config}: {name} has no 'features'; name the folder there or with --out")
        cache = FeatureCache(place, FeatureSpec(fps=section.fps, **facts), getattr(torch, dtype) if dtype else None)
        folder = folder or cache.root

        def done(video: Path, result: str, fault: DataError | None, skip: bool = section.on_error == "skip") -> None:
            if fault is not None and not skip:
                raise fault
            counts[result] += 1
            faults.extend([str(fault)] if fault else [])
            progress(video.name)

        videos = dict.fromkeys(path for sample in iterate(section) for path, _ in sample.clips)
        cache.fill(videos, stream.encode, done, batch)
    return {"folder": str(folder), **{k: counts[k] for k in ("made", "kept", "failed")}, "faults": faults}


def tower_of(path: str) -> Any:
    """A StreamingLlava with the pretrained tower of a run's YAML file and no language model to speak of.

    Raises ConfigError where the file names no pretrained tower: random weights would be other ones in the run.
    """
    from vtskip.models.streaming_llava import StreamingLlava, StreamingLlavaConfig

    recipe = load_config(TrainConfig, path).model
    if recipe.checkpoint is not None:
        return load_stream(recipe.checkpoint, "cpu").model
    if not recipe.vision_pretrained:
        raise ConfigError(
            f"{path}: model.vision_pretrained is not given, so there is no tower to make features with yet"
        )
    small = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    text = small | {"num_attention_heads": 1, "vocab_size": 8}
    config = StreamingLlavaConfig(**tower_options(recipe), text_config=text)
    model = StreamingLlava(config)
    model.load_vision()
    return model
