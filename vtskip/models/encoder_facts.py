"""What the features of a vision tower depend on, as plain values."""

import hashlib
import json
from typing import Any

import torch


def encoder_facts(model: Any) -> dict[str, Any]:
    """``encoder, fingerprint, size, layout, tokens, width`` of a ``StreamingLlava``.

    The fingerprint is over the tower's weights as fp32, so that it does not depend on the type they are loaded in, and over
    the normalisation of pixels.
    """
    config = model.config
    digest = hashlib.sha256(json.dumps([config.image_mean, config.image_std]).encode())
    for name, tensor in sorted(model.vision_tower.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    pool = "x".join(map(str, config.pool)) if config.pool else ""
    return {
        "encoder": config.vision if isinstance(config.vision, str) else json.dumps(config.vision, sort_keys=True),
        "fingerprint": digest.hexdigest(),
        "size": config.image_size,
        "layout": "+".join(filter(None, ["1" if config.cls_token else "", pool])),
        "tokens": config.frame_tokens,
        "width": model.vision_tower.width,
    }
