"""The entry point that lmms-eval finds vtskip by: ``--model vtskip``. Importing this costs nothing."""

from typing import Any


def manifest() -> Any:
    """The model's name and class, as lmms-eval's registry wants them."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vtskip", chat_class_path="vtskip.eval.lmms_model.Vtskip")
