"""The streaming objective of VideoLLM-online (arXiv 2406.11816): language modelling plus speak-or-stay-silent."""

import torch
import torch.nn.functional as F
from torch import Tensor


def stream_loss(
    logits: Tensor,
    labels: Tensor,
    input_ids: Tensor,
    frame_id: int,
    weight: float = 1.0,
    num_items: Tensor | int | None = None,
) -> tuple[Tensor, Tensor]:
    """Scalar loss: ``sum_p w_p · CE(logits[p], labels[p]) / number of labelled p``.

    ``w_p`` is ``weight`` where the input token is the frame placeholder and 1 elsewhere; the denominator counts
    positions, not weights. There is no shift: ``labels[p]`` is the target predicted at p, -100 where nothing is learned.

    logits [B, S, V]; labels, input_ids [B, S]. Only labelled rows are computed. Without any label the loss is a
    differentiable zero. num_items divides instead of the number of labels: the labels of all the micro-batches and
    processes that share an optimizer step.

    Beside it what it is made of, ``[4]`` without gradient: summed cross entropy (not weighted) and number of the labels at
    frames, then of all others.
    """
    learned = labels != -100
    rows = logits[learned]
    if rows.shape[0] == 0:
        return logits.sum() * 0.0, logits.new_zeros(4, dtype=torch.float32)
    losses = F.cross_entropy(rows.float() if rows.dtype.itemsize < 4 else rows, labels[learned], reduction="none")
    on_frame = input_ids[learned] == frame_id
    weights = torch.where(on_frame, weight, 1.0).to(losses)
    loss = (losses * weights).sum() / (rows.shape[0] if num_items is None else num_items)
    told, at = losses.detach().float(), on_frame.float()
    return loss, torch.stack([(told * at).sum(), at.sum(), (told * (1 - at)).sum(), (1 - at).sum()])
