"""Training on precomputed features of the vision tower."""

from typing import Any

from vtskip.data.features import FeatureCache, FeatureSpec
from vtskip.errors import ConfigError
from vtskip.models.encoder_facts import encoder_facts
from vtskip.train.config import TrainConfig


def open_features(config: TrainConfig, model: Any) -> FeatureCache | None:
    """The cache that ``data.features`` names, None without one.

    Raises ConfigError where the tower is to be trained or the validation reads something else, DataError where the folder
    has no features of this very tower.
    """
    folder = config.data.features
    if config.validation is not None and config.validation.features != folder:
        raise ConfigError(f"validation.features {config.validation.features}: has to be data.features ({folder})")
    if folder is None:
        return None
    if config.trains.vision:
        raise ConfigError(
            "data.features: the vision tower is not run, so it cannot be trained; set trains.vision=false"
        )
    if config.validation is not None and config.validation.fps != config.data.fps:
        raise ConfigError(
            f"validation.fps {config.validation.fps}: with features it has to be data.fps ({config.data.fps})"
        )
    cache = FeatureCache(folder, FeatureSpec(fps=config.data.fps, **encoder_facts(model)))
    cache.check()
    return cache
