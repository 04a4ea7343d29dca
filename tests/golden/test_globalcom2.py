"""GlobalCom2 against the authors' code: shares of the tiles, scores, and the rows that stay."""

import pytest
import torch
from transformers import LlavaNextConfig

from tests.golden.stacks import close
from tests.tiny_families import clip
from vtskip.methods.globalcom2 import combined, ratios, select, tiles_of
from vtskip.models.groups import view_of


@pytest.mark.parametrize("name", ["globalcom2", "globalcom2_unpadded"])
def test_selection(golden, name):
    item = golden(name)
    t, c = item.tensors, item.json["config"]
    side, columns, lines = c["side"], c["grid_columns"], c["grid_rows"]
    width, height = c["original_size_width_height"]
    pixels = 8 * side
    config = LlavaNextConfig(vision_config=clip(pixels), image_grid_pinpoints=[[lines * pixels, columns * pixels]])
    view = view_of((height, width), side, config)
    inside = torch.zeros_like(t["unpadded_mask"])
    inside[view.top : view.top + view.height, view.left : view.left + view.width] = True
    assert torch.equal(inside, t["unpadded_mask"])

    whole, tile = t["thumbnail_scores"], tiles_of(view, torch.device("cpu"))
    grid = t["crop_scores"].view(lines, columns, side, side).permute(0, 2, 1, 3).reshape(lines * side, columns * side)
    cells = grid[inside].view(view.height, view.width)
    close(ratios(view, whole, c["R"], c["temperature"]), t["crop_ratios"], 1e-6)
    scores = combined(view, whole, cells)
    kept_whole, kept = select(view, whole, cells, c["R"], c["temperature"])
    assert torch.equal(kept_whole.nonzero().flatten(), t["thumbnail_kept"].sort().values)
    for j in range(lines * columns):
        close(scores[tile == j], t[f"crop_combined_score.{j}"], 1e-5)
        assert torch.equal(kept[tile == j].nonzero().flatten(), t[f"crop_kept_unpadded.{j}"])

    features = (
        t["crop_features"].view(lines, columns, side, side, -1).permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(1, 2)
    )
    ours = features[inside].view(view.height, view.width, -1)[kept]
    released = t["crop_sequence_out"]
    newline = (released - t["newline"]).abs().amax(1) <= 2e-3
    assert int(newline.sum()) == lines * side  # the release writes one for every line, padding included
    released = released[~newline]
    if not item.json["displaced_by_source"]:
        close(ours, released, 2e-3)
    else:  # the same rows, at other places
        matched = (ours[:, None] - released).abs().amax(-1) <= 2e-3
        assert ours.shape == released.shape and (matched.sum(0) == 1).all() and (matched.sum(1) == 1).all()
