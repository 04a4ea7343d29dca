"""Two processes with DeepSpeed ZeRO on gloo train a stock model as one does, where one of them has no image."""

import pytest

from tests.train import stand_ins
from tests.train.test_zero import logged, slow, start, zero


@pytest.mark.parametrize(
    ("stage", "lora", "method"),
    [
        slow(3, False, "mod"),
    ],
)
def test_two_processes_of_which_one_has_no_image_equal_one(tmp_path, stage, lora, method):
    """ZeRO on a stock model: the rank with text alone calls tower and connector too, on a masked blank image."""
    pytest.importorskip("deepspeed")
    model, data = stand_ins.llava(tmp_path / "model"), stand_ins.llava_json(tmp_path / "data")
    values = {
        "model": {"pretrained": str(model)},
        "method": {"name": method},
        "data": {"kind": "llava", "annotations": str(data / "records.json"), "videos": str(data)},
        "trains": {"vision": True},
        "optim": {"steps": 4, "batch_size": 2, "lr": 1e-3},
        "log_every": 1,
        # One process would leave the tower out of a batch without any image, and its moments as they are.
        "seed": 2,
    }
    if lora:
        values["lora"] = {"r": 4}
    one, two = tmp_path / "one", tmp_path / "two"
    seen_alone = start(values, one, 1)[0]
    values["optim"]["batch_size"], values["deepspeed"] = 1, zero(stage, tmp_path)
    first, second = start(values, two, 2)
    together = [uid for pair in zip(first, second) for uid, _ in pair]
    assert together[:8] == [uid for uid, _ in seen_alone][:8]
    assert all(a.startswith("talk") != b.startswith("talk") for (a, _), (b, _) in zip(first, second))
    for key in ("loss", "grad_norm"):
        assert logged(two, key) == pytest.approx(logged(one, key), rel=1e-4)
