"""The smoke tier, made once, and the values of a run that takes a second."""

import pytest


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """Folder of the synthetic smoke tier."""
    from vtskip.data.synthetic import make

    return make("smoke", tmp_path_factory.mktemp("smoke"), progress=False)


@pytest.fixture
def values(smoke, tmp_path):
    """Values of a TrainConfig: three steps of a tiny model with ``mod`` routers on the smoke tier."""
    return {
        "out": str(tmp_path / "run"),
        "method": {"name": "mod", "keep": 0.4},
        "model": {
            "vision": {"width": 32, "layers": 1, "head_width": 16, "patch_size": 16, "image_size": 32},
            "pool": [2, 2],
            "lm": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
            },
            "tokenizer": "words",
        },
        "data": {
            "kind": "synthetic",
            "root": str(smoke),
            "tier": "smoke",
            "split": "train",
            "system": "You see it.",
            "instruction": "Narrate.",
        },
        "optim": {"steps": 3, "batch_size": 2, "lr": 0.01},
        "log_every": 1,
        "cache_frames": 1000,
    }
