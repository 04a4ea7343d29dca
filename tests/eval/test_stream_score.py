"""The scorer on a real (tiny, random) model: cache reuse against recomputation, frame windows, refusals."""

import pytest
import torch

from tests.helpers_stream import ScriptedModel, one_hot
from tests.tiny_stream import METHODS, Biased, tiny, video
from vtskip import attach
from vtskip.errors import DataError
from vtskip.eval.stream_score import StreamIds, content_mask, score, split_turns


def conversation(*turns):
    """system, then (frames, learn, reply or None) triples."""
    out = [{"role": "system", "content": "You see it."}]
    for frames, learn, reply in turns:
        out.append({"role": "stream", "num_frames": frames, "learn": learn})
        if reply is not None:
            out.append({"role": "assistant", "content": reply, "learn": bool(learn)})
    return out


TALK = conversation((4, True, "C cuts."), (3, True, "C looks."), (5, True, "C opens."), (2, True, "C cuts."))


def never_speaks(model):
    stream = Biased(model)
    stream.bias = 60.0
    return stream


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_late_frames_equal_recomputation(method):
    """Crop by logical position and feed on = one pass over the cropped prefix and the later frames."""
    model, template = tiny()
    ids, encoded = StreamIds.of(template), template.encode(TALK)
    with attach(model, method):
        stream = never_speaks(model)
        features = stream.encode(video(encoded.num_frames))
        turns = score(stream, encoded.input_ids, encoded.labels, features, ids)
        assert [t.offered for t in turns] == [3, 2, 2, 0]
        assert [t.appended is not None for t in turns] == [True, True, True, False]
        for turn, spans in zip(turns, split_turns(encoded.input_ids, encoded.labels, ids)):
            if turn.appended is None:
                continue
            end = spans.stream[-1] + 1
            chunk = encoded.input_ids[:end] + ids.frames(turn.offered)
            seen = turn.first_frame + turn.frames
            rows = [end - 1 + (j + 1) * (template.frame_tokens + 1) for j in range(turn.offered)]
            logits = stream.step(chunk, features[: seen + turn.offered], stream.new_cache(), rows)
            want = logits.softmax(-1)[:, ids.silent_id].tolist()
            assert turn.appended.p_interval == pytest.approx(want, rel=1e-9, abs=1e-300)


def test_records_equal_a_plain_pass():
    model, template = tiny()
    ids, encoded = StreamIds.of(template), template.encode(TALK)
    stream = Biased(model)
    features = stream.encode(video(encoded.num_frames))
    turns = score(stream, encoded.input_ids, encoded.labels, features, ids, threshold=0.5)
    every = list(range(len(encoded.input_ids)))
    logits = stream.step(encoded.input_ids, features, stream.new_cache(), every).log_softmax(-1)
    for turn, spans in zip(turns, split_turns(encoded.input_ids, encoded.labels, ids), strict=True):
        ce = [-logits[p, encoded.labels[p]].item() for p in spans.text]
        assert turn.text_ce == pytest.approx(ce, rel=1e-12)
        assert turn.text_pred == [int(logits[p].argmax()) for p in spans.text]
        p = [logits[p, ids.silent_id].exp().item() for p in spans.stream]
        assert turn.stream.p_interval == pytest.approx(p, rel=1e-12)
        assert turn.target_speak == [False] * (turn.T - 1) + [True]
        words = "".join(template.tokenizer.names[t] for t in turn.content(turn.text_target)).strip()
        assert words in {"C cuts.", "C looks.", "C opens."}


def test_frames_after_unlearned_turns_and_cut_streams():
    """The published window skips unlearned frames and turns; ``exact`` continues with the frames that come next."""
    model, template = tiny()
    talk = conversation((3, False, "C cuts."), (4, 2, "C cuts."), (6, True, "C opens."))
    ids, encoded = StreamIds.of(template), template.encode(talk)
    frames = torch.arange(encoded.num_frames)
    size = len(template.tokenizer.names)
    seen = {}
    for rule in ("reference", "exact"):
        model = ScriptedModel(
            one_hot([ids.silent_id] * len(encoded.input_ids), size), one_hot([ids.silent_id] * 3, size, ids)
        )
        turns = score(model, encoded.input_ids, encoded.labels, frames, ids, continuation=rule)
        assert [t.turn for t in turns] == [1, 2]
        seen[rule] = model.calls[1].frames
    assert seen == {"reference": [4, 5, 6], "exact": [5, 6, 7]}


def test_nothing_learned_means_no_records_and_no_forward():
    _, template = tiny()
    encoded = template.encode(conversation((2, False, "C cuts.")))
    model = ScriptedModel(torch.zeros(0, 1))
    assert score(model, encoded.input_ids, encoded.labels, None, StreamIds.of(template)) == []
    assert model.calls == []


def test_content_is_what_lies_between_prefix_and_end():
    ids = StreamIds(11, 1, 2, 1, reply_prefix=(4, 5))
    assert content_mask([4, 5, 8, 9, 2], ids) == [False, False, True, True, False]
    assert content_mask([4, 8, 9], ids) == [False, True, True]
    assert content_mask([], ids) == []


def test_cut_frames_and_short_labels_are_named():
    ids = StreamIds(11, 2, 2, 1)
    with pytest.raises(DataError, match="3 frame tokens; accepted: a multiple of 2"):
        split_turns([11, 11, 11, 2], [-100] * 4, ids)
    with pytest.raises(DataError, match="4 input_ids with 3 labels"):
        split_turns([11, 11, 11, 2], [-100] * 3, ids)
