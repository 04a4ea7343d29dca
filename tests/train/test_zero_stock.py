"""Two processes with DeepSpeed ZeRO on gloo train a stock model as one does, where one of them has no image."""

import json

import pytest

from tests.train import stand_ins
from tests.train.zero_runs import logged, slow, start, zero

EVERYWHERE = {"kind": "constant"}
# Weighed by its own contribution: a scaled row is the same to the next norm, and a router would hardly get a gradient.
MOD = {"name": "mod", "keep": 0.4, "combine": "delta", "schedule": EVERYWHERE}
PMOD = {"name": "pmod", "schedule": EVERYWHERE}
# Its auxiliary loss is a mean of each batch, which is another one in one process.
GAMMA_MOD = {"name": "gamma_mod", "schedule": EVERYWHERE, "aux_weight": 0}
SKIP_VISION = {"name": "skip_vision", "retain": "even", "keep": 4, "merged": 6}
SHORTV = {"name": "shortv", "layers": [1, 2]}
LORA = {"lora": {"r": 4}}
CHECKPOINTED = {"gradient_checkpointing": True}


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Values of a run: a Llava of which all parts learn, on images and text in turn."""
    folder = tmp_path_factory.mktemp("stock")
    model, data = stand_ins.llava(folder / "model"), stand_ins.llava_json(folder / "data")
    return {
        "model": {"pretrained": str(model)},
        "data": {"kind": "llava", "annotations": str(data / "records.json"), "videos": str(data)},
        "trains": {"vision": True},
        "log_every": 1,
        # One process would leave the tower out of a batch without any image, and its moments as they are.
        "seed": 2,
    }


@pytest.mark.parametrize(
    ("stage", "method", "more"),
    [
        (2, MOD, {}),
        (3, MOD, {}),
        slow(2, PMOD, {}),
        slow(3, PMOD, {}),
        slow(3, MOD, LORA),
        slow(3, SKIP_VISION, CHECKPOINTED),
        slow(3, GAMMA_MOD, CHECKPOINTED),
        slow(3, SHORTV, LORA),
    ],
)
def test_two_processes_of_which_one_has_no_image_equal_one(stock, alone, tmp_path, stage, method, more):
    """ZeRO on a stock model: the rank with text alone calls tower and connector too, on a masked blank image."""
    seen = compare(stock | {"method": method} | more, stage, alone, tmp_path)
    assert all(a.startswith("talk") != b.startswith("talk") for a, b in zip(*seen))


@pytest.mark.slow
def test_a_second_stage_takes_its_parts_from_elsewhere_into_a_model_that_is_cut_up(stock, alone, tmp_path):
    """Also the connector's new weights are those of one process."""
    lm = stand_ins.language_model(tmp_path / "lm", vocab_size=20)
    model = stock["model"] | {"lm": str(lm), "connector": "new"}
    compare(stock | {"method": PMOD, "model": model}, 3, alone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_images_and_videos_in_any_batch(alone, tmp_path, stage):
    """The tower runs once for images and once for videos, in every process, whatever its batch has of them."""
    data = stand_ins.pictures(tmp_path / "data")
    asked = "What is shown here ?", "A red square ."
    records = [
        stand_ins.talk("one", "<image>\n" + asked[0], asked[1], image="a.png"),
        stand_ins.talk("clip", "<video>\n" + asked[0], asked[1], video="c.mp4"),
    ]
    (data / "records.json").write_text(json.dumps(records))
    values = {
        "model": {"pretrained": str(stand_ins.qwen2_5_vl(tmp_path / "model"))},
        "method": MOD,
        "data": {
            "kind": "llava",
            "annotations": str(data / "records.json"),
            "videos": str(data),
            "max_frames": 4,
        },
        "trains": {"vision": True},
        "log_every": 1,
        "seed": 2,
    }
    first, second = compare(values, stage, alone, tmp_path, each=2)
    steps = [({*first[i : i + 2]}, {*second[i : i + 2]}) for i in range(0, len(first), 2)]
    assert any({"one", "clip"} in ranks for ranks in steps) and any({"one", "clip"} not in ranks for ranks in steps)


def compare(values, stage, alone, folder, each=1):
    """Train alone and as two processes that take ``each`` samples per step; what the two saw."""
    pytest.importorskip("deepspeed")
    values = values | {"optim": {"steps": 4, "batch_size": 2 * each, "lr": 1e-3}}
    one, seen_alone = alone(values | {"gradient_checkpointing": False})
    values |= {"optim": values["optim"] | {"batch_size": each}, "deepspeed": zero(stage, folder)}
    two = folder / "two"
    seen = [[uid for uid, _ in rank] for rank in start(values, two, 2)]
    together = [uid for i in range(0, len(seen[0]), each) for rank in seen for uid in rank[i : i + each]]
    assert together[:8] == [uid for uid, _ in seen_alone][:8]
    for key in ("loss", "grad_norm", *(["router_grad_norm"] if values["method"] == MOD else [])):
        assert len(logged(one, key)) == 4
        assert logged(two, key) == pytest.approx(logged(one, key), rel=1e-4), key
    return seen
