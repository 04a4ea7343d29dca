"""Training loss and its gradient against the reference code."""

import torch

from vtskip.models.stream_loss import stream_loss


def test_loss_and_gradient(golden):
    item = golden("stream_loss")
    config, t = item.json["config"], item.tensors
    logits = t["logits"].requires_grad_()
    loss, _ = stream_loss(
        logits, t["labels"], t["input_ids"], config["frame_placeholder_id"], config["stream_loss_weight"]
    )
    loss.backward()
    torch.testing.assert_close(loss.detach().reshape(1), t["loss"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits.grad, t["grad_logits"], atol=1e-6, rtol=0)


def test_the_weight_reaches_only_frame_positions(golden):
    item = golden("stream_loss")
    frame_id, t = item.json["config"]["frame_placeholder_id"], item.tensors
    learned = t["labels"] != -100
    at_frames = learned & (t["input_ids"] == frame_id)
    assert at_frames.any() and (learned & ~at_frames).any()
    one, _ = stream_loss(t["logits"], t["labels"], t["input_ids"], frame_id, 1.0)
    three, _ = stream_loss(t["logits"], t["labels"], t["input_ids"], frame_id, 3.0)
    cross = torch.nn.functional.cross_entropy(t["logits"][at_frames], t["labels"][at_frames], reduction="sum")
    torch.testing.assert_close(three - one, 2 * cross / learned.sum())
