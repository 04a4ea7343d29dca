"""Frame by frame with a cache equals one pass over everything that was fed, in float64, for every method."""

import pytest
import torch

from tests.tiny_stream import METHODS, Biased, tiny, video
from vtskip import attach
from vtskip.runtime.cache import SkipCache
from vtskip.streaming.session import StreamSession


class Recorder(Biased):
    """Remembers every call: ids, features, logits of the last row."""

    def __init__(self, model):
        super().__init__(model)
        self.calls = []

    def step(self, ids, features, cache, rows):
        logits = super().step(ids, features, cache, rows)
        self.calls.append((list(ids), features, logits))
        return logits


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_session_equals_one_pass(method):
    model, template = tiny()
    with attach(model, method) as handle:
        stream = Recorder(model)
        live = StreamSession(
            stream, template, threshold=0.5, max_new_tokens=5, system="You see it.", instruction="opens"
        )
        live.ask("What is this?", 3.2)
        events = [e for k, frame in enumerate(video(14)) for e in live.push(frame, k / 2)]
        spoken = {d.speak for d in live.decisions}
        assert spoken == {True, False}, "the test needs both decisions"
        assert any(e.query for e in events)

        ids = [i for call, _, _ in stream.calls for i in call]
        assert live.cache.get_seq_length() == len(ids)
        features = torch.cat([f for _, f, _ in stream.calls if f is not None])
        ends = torch.tensor([len(call) for call, _, _ in stream.calls]).cumsum(0) - 1
        whole = Biased(model).step(ids, features, SkipCache(), ends.tolist())
        torch.testing.assert_close(torch.cat([x for _, _, x in stream.calls]), whole, rtol=0, atol=1e-11)

        report = handle.report()
        if method == {"name": "mod", "keep": 0.4}:  # 2 of 5 rows of every frame in layers 1 and 3
            assert live.cost()["kept_per_frame"] == pytest.approx([5, 2, 5, 2])
            assert live.cost()["kv_bytes"] == report.kv_bytes < report.kv_bytes_dense


def test_methods_change_what_the_session_says():
    model, template = tiny()
    probabilities = []
    for method in METHODS:
        with attach(model, method):
            live = StreamSession(Biased(model), template, threshold=0.0, max_new_tokens=2)
            live.push(video(1)[0], 0.0)
            probabilities.append(live.decisions[0].p_interval)
    assert len(set(probabilities)) == len(METHODS)


def test_session_takes_the_bare_model():
    model, template = tiny(torch.float32)
    live = StreamSession(model, template, max_new_tokens=3)
    live.push(video(1)[0].numpy(), 0.0)
    assert "kv_bytes" not in live.cost()
    with attach(model, "dense"):
        live.push(video(1)[0].numpy(), 0.5)
        cost = live.cost()
    assert cost["kv_bytes"] == cost["kv_bytes_dense"] > 0
