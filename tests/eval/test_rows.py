"""Comparison rows: equal counts, equal cost, and a checkpoint that is as before afterwards."""

import numpy as np
import pytest
import torch

from vtskip.config import parse
from vtskip.errors import ConfigError
from vtskip.eval import EvalConfig, run
from vtskip.eval.areas import kept_of
from vtskip.eval.guided import Guided, guide, motion
from vtskip.eval.rows import RowPlan, applied, equal_cost_grid, flops, plan_rows, resampled, row_method
from vtskip.eval.shard import Shard
from vtskip.eval.subject import Prompt
from vtskip.eval.tasks import Generation
from vtskip.methods import get_method
from vtskip.streaming.loading import load_stream

TALK = [
    {"role": "system", "content": "You see it."},
    {"role": "stream", "num_frames": 3, "learn": True},
    {"role": "assistant", "content": "C looks around", "learn": True},
    {"role": "stream", "num_frames": 3, "learn": True},
    {"role": "assistant", "content": "C opens the lid", "learn": True},
]


@pytest.fixture
def stream(checkpoint):
    return load_stream(checkpoint, "cpu")


@pytest.fixture
def prompt(stream):
    side = stream.model.config.image_size
    return Prompt(TALK, np.random.default_rng(0).integers(0, 255, (6, side, side, 3), np.uint8))


def test_fewer_patches_cost_at_least_as_much_as_the_model_and_no_more_than_needed(stream, prompt):
    assert stream.model.config.pool == [2, 2]
    own = RowPlan("model", get_method({"name": "uniform", "keep": 0.2, "schedule": {"kind": "constant", "first": 1}}))
    grid = equal_cost_grid(stream, own, prompt)
    costs = {}
    with applied(own, stream) as subject:
        budget = flops(subject, prompt)
    for pool in ((1, 1), (1, 2), (2, 1), (2, 2)):
        with applied(RowPlan("downsample", get_method("dense"), pool), stream) as subject:
            costs[pool] = flops(subject, prompt)
    assert costs[grid] == min(cost for cost in costs.values() if cost >= budget)
    assert budget <= costs[grid] < costs[2, 2]


def test_a_model_without_a_grid_has_no_downsampled_row(stream, prompt):
    stream.model.config.pool = None
    with pytest.raises(ConfigError, match="'downsample' needs frames with a grid"):
        equal_cost_grid(stream, RowPlan("model", stream.method), prompt)


def test_the_checkpoint_is_as_before(stream, prompt):
    method, template = stream.method, stream.template
    plan = plan_rows(["blind", "downsample", "motion"], stream, 0, prompt)
    assert stream.method == method
    with pytest.raises(RuntimeError), resampled(stream, (1, 1)):
        assert stream.template.frame_tokens == 2
        raise RuntimeError
    assert (stream.template, stream.model.config.pool) == (template, [2, 2])
    turns = {}
    for name in ("model", *plan, "model"):
        with applied(plan[name], stream) as subject:
            turns.setdefault(name, []).append(subject.stream_score(prompt, 0.0, "reference")[0])
    assert turns["model"][0] == turns["model"][-1]
    assert turns["blind"][0] != turns["model"][0] != turns["motion"][0]


def test_motion_keeps_what_changed(stream, prompt):
    method = row_method("motion", get_method({"name": "mod", "keep": 0.2}), seed=0)
    assert (type(method), method.keep) == (Guided, 0.2)
    still = prompt.frames.copy()
    still[1:] = still[0]
    still[3, : still.shape[1] // 2, : still.shape[2] // 2] = (
        255 - still[3, : still.shape[1] // 2, : still.shape[2] // 2]
    )
    scores = motion(stream.model.encode_frames(torch.as_tensor(still)))
    assert scores[[0, 1, 2, 5]].abs().max() < 1e-5
    assert (scores[3] > 1e-3).any()
    with applied(RowPlan("motion", method), stream) as subject:
        _, cost = subject.stream_score(Prompt(TALK, still), 0.0, "reference")
    assert cost is not None
    assert cost["kept"] == [1.0, 0.2, 1.0, 0.2]


def test_given_scores_choose_the_rows(stream, prompt):
    stream.use(Guided(keep=0.2, schedule=get_method("mod").schedule))
    template, model = stream.template, stream.model
    ids = torch.tensor([template.encode(TALK).input_ids])
    frames = torch.as_tensor(prompt.frames)
    out = []
    for place in (0, 3):
        scores = torch.zeros(6, template.frame_tokens)
        scores[:, place] = 1
        guide(model, [scores])
        with torch.no_grad():
            out.append(model(input_ids=ids, frames=frames).logits)
        plans = stream.handle.report().layers[1].groups
        assert plans == [[1] * 6]
    assert not torch.equal(*out)
    twice = torch.cat([ids, ids])
    with torch.no_grad():  # beams of one question
        both = model(input_ids=twice, frames=torch.cat([frames, frames])).logits
    assert torch.allclose(both[0], out[1][0], atol=1e-5)
    assert torch.allclose(both[1], out[1][0], atol=1e-5)


def test_answers_do_not_depend_on_the_batch(stream, prompt):
    prompts = [
        Prompt(
            [{"role": "user", "content": "Narrate. " * n}, {"role": "stream", "num_frames": n}],
            prompt.frames[k : k + n],
        )
        for k, n in enumerate((1, 4, 2))
    ] + [Prompt([{"role": "user", "content": "You see it."}], prompt.frames[:0])]
    for generation in (Generation(max_new_tokens=6), Generation(max_new_tokens=6, num_beams=3, num_return_sequences=2)):
        with applied(RowPlan("model", stream.method), stream) as subject:
            together, costs = subject.generate(prompts, generation)
            alone = [subject.generate([p], generation)[0][0] for p in prompts]
        assert together == alone
        assert len({answers[0] for answers in alone}) > 1, "answers that are all the same prove nothing"
        assert all(len(answers) == generation.num_return_sequences for answers in alone)
        assert costs[0] is not None
        assert costs[1:] == [None] * 3
        assert 0 < costs[0]["first_token_seconds"] <= costs[0]["seconds"]


def test_batches_of_guided_rows_are_those_of_single_ones(stream, prompt):
    method = Guided(keep=0.4, schedule=get_method("mod").schedule)
    prompts = [
        Prompt([{"role": "user", "content": "Narrate."}, {"role": "stream", "num_frames": n}], prompt.frames[k : k + n])
        for k, n in enumerate((3, 5, 2))
    ]
    prompts.insert(1, Prompt([{"role": "user", "content": "You see it."}], prompt.frames[:0]))
    for generation in (Generation(max_new_tokens=6), Generation(max_new_tokens=6, num_beams=2, num_return_sequences=2)):
        with applied(RowPlan("motion", method), stream) as subject:
            together, _ = subject.generate(prompts, generation)
            assert together == [subject.generate([p], generation)[0][0] for p in prompts]
            subject.generate(prompts, generation)
            kept = iter(kept_of(stream.handle)[:: generation.num_beams])
            for own in (p.frames for p in prompts if len(p.frames)):
                best = motion(stream.model.encode_frames(torch.as_tensor(own))).topk(2).indices[1:]
                found = [set(row.nonzero()[0].tolist()) for row in next(kept)[1][1:]]
                assert found == [set(row.tolist()) for row in best], "in every sample the rows that moved there"


def test_shards_part_the_samples():
    shares = [Shard(rank, 3).own(range(8)) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(8))
    assert [len(share) for share in shares] == [3, 3, 2]


def test_a_model_trained_with_random_rows_stands_beside_the_untrained_ones(eval_config, checkpoint, copied, tmp_path):

    from vtskip.saving import save_pretrained

    other = load_stream(checkpoint, "cpu")
    other.use({"name": "random", "keep": 0.4})
    with torch.no_grad():
        other.model.get_output_embeddings().weight.mul_(0.5)  # it was trained by itself
    other.model.save_pretrained(copied)
    save_pretrained(other.model, copied)
    values = eval_config | {"rows": ["random", "random_trained"], "random_checkpoint": str(copied), "live_clips": 0}
    record = run(parse(EvalConfig, values, "test"))
    assert record["methods"]["random_trained"]["model"] == str(copied)
    rows, costs = record["accuracy"], record["cost"]
    assert costs["random_trained"]["kept_vision"] == costs["random"]["kept_vision"] == costs["model"]["kept_vision"]
    assert rows["random_trained"]["reference"]["lm_ppl"] != rows["random"]["reference"]["lm_ppl"]
    for change, words in (
        ({"random_checkpoint": str(checkpoint)}, "trained with .*'mod'.*accepted: method 'random'"),
        ({"method": {"name": "mod", "keep": 0.2}}, "keep and schedule"),
        ({"random_checkpoint": None}, "needs 'random_checkpoint'"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(parse(EvalConfig, values | change, "test"))


def test_other_checkpoints_run_as_they_were_saved(eval_config, checkpoint, copied):
    from vtskip.models.streaming_llava import StreamingLlava
    from vtskip.saving import save_pretrained

    other = load_stream(checkpoint, "cpu")
    other.use({"name": "random", "keep": 0.4})
    other.model.config.pool = [1, 2]
    other.model.save_pretrained(copied)
    save_pretrained(other.model, copied)
    values = eval_config | {"rows": ["blind"], "checkpoints": {"coarse": str(copied)}, "live_clips": 0}
    record = run(parse(EvalConfig, values, "test"))
    row, methods = record["cost"]["coarse"], record["methods"]
    assert methods["coarse"] == methods["coarse"] | {"name": "random", "pool": [1, 2], "model": str(copied)}
    assert row["flops_full"] < record["cost"]["model"]["flops_full"]
    assert row["flops_full_dense"] == record["cost"]["model"]["flops_full_dense"], (
        "against dense on the model's own grid"
    )
    with pytest.raises(ConfigError, match="'dense' is a row already"):
        parse(EvalConfig, values | {"checkpoints": {"dense": str(copied)}}, "test")
    config = other.model.config
    config.vision, config.image_size = config.vision | {"image_size": 48}, 48
    StreamingLlava(config).save_pretrained(copied)
    with pytest.raises(ConfigError, match=r"checkpoints\.coarse .*image_size 48; accepted: that of the model"):
        run(parse(EvalConfig, values, "test"))
