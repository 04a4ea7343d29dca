"""The data section of a configuration."""

import pytest

from vtskip.config import parse
from vtskip.data import DataConfig, build
from vtskip.errors import ConfigError, DataError


def test_synthetic_reads_the_exact_pass_of_a_split(smoke):
    config = DataConfig(kind="synthetic", root=smoke, tier="smoke", split="val", lead_in=True, tail=True)
    samples = build(config, progress=False)
    assert [s.uid for s in samples] == ["smoke-0008/smoke-0008-pass1", "smoke-0009/smoke-0009-pass1"]
    for sample in samples:
        assert sample.frames == list(range(0, round(sample.meta["duration"] * 10), 5))
        assert sample.conversation[0] == {"role": "system", "content": config.system}
    both = build(config.model_copy(update={"passes": [1, 2]}), progress=False)
    assert len(both) == 4


def test_synthetic_coin_tasks_use_the_same_split(smoke):
    config = DataConfig(kind="synthetic", root=smoke, tier="smoke", split="test", task="narrate")
    samples = build(config, progress=False)
    assert [s.uid for s in samples] == ["smoke-0010", "smoke-0011"]
    texts = [t["content"] for t in samples[0].conversation if t["role"] == "assistant"]
    assert all(text[0].isupper() and text.endswith(".") for text in texts)
    assert {s.meta["video_uid"] for s in build(config.model_copy(update={"task": "step"}), progress=False)} == {
        "smoke-0010",
        "smoke-0011",
    }


def test_a_missing_synthetic_set_is_made(tmp_path, capsys):
    samples = build(DataConfig(kind="synthetic", root=tmp_path / "new", tier="smoke", split="train"))
    assert len(samples) == 8 and (tmp_path / "new" / "manifest.json").is_file()
    assert "making clips" in capsys.readouterr().err


def test_real_kinds_take_paths_relative_to_root(smoke):
    ego = DataConfig(
        kind="ego4d_narration", root=smoke, annotations="ego4d/all_narrations_redacted.json", videos="videos",
        splits="splits.json", split="val",
    )  # fmt: skip
    assert len(build(ego)) == 4
    coin = DataConfig(kind="coin", annotations=smoke / "coin/COIN.json", videos=smoke / "videos", split="testing")
    assert [s.uid for s in build(coin)] == ["smoke-0010", "smoke-0011"]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"kind": "coin"}, "needs 'annotations'"),
        ({"kind": "synthetic"}, "needs 'root'"),
        ({"kind": "coinn"}, "coin"),
        ({"kind": "synthetic", "root": "x", "splt": "val"}, "'splt'.*split"),
        ({"kind": "synthetic", "root": "x", "fps": 0}, "fps"),
        ({"kind": "synthetic", "root": "x", "max_frames": 1}, "max_frames"),
        ({"kind": "ego4d_narration", "annotations": "a", "videos": "v", "task": "step"}, "has no task 'step'"),
        ({"kind": "coin", "annotations": "a", "videos": "v", "task": "narration"}, "has no task 'narration'"),
    ],
)
def test_wrong_configurations(values, message):
    with pytest.raises(ConfigError, match=message):
        parse(DataConfig, values, "test.yaml")


def test_unknown_split_and_tier(smoke, tmp_path):
    with pytest.raises(DataError, match=r"splits.json: unknown split 'training'; did you mean 'train'\?"):
        build(DataConfig(kind="synthetic", root=smoke, tier="smoke", split="training"), progress=False)
    with pytest.raises(ConfigError, match="unknown tier"):
        build(DataConfig(kind="synthetic", root=tmp_path, tier="smal"), progress=False)
    assert not any(tmp_path.iterdir())
