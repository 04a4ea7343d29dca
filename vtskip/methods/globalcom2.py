"""GlobalCom2 (arXiv 2501.05179): each tile of an image keeps a share of its rows, larger where the whole view looks more."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from vtskip.methods.base import LayerPlanner, Method
from vtskip.plan import VIEWS, VIT_LOGITS, DecoderShape, LayerPlan, RowMap, RowSet, View
from vtskip.routers import group_ranks, topk_per_group
from vtskip.schedules import Keep


class GlobalCom2(Method):
    """Before the first layer, the rows that matter least leave: of the whole view, and of every tile, which it guides.

    An anyres image (LLaVA-NeXT) is a whole view of n rows and tiles. The whole view keeps its ``trunc(keep * n)`` best rows.
    A tile keeps ``trunc(n_j * r_j)`` of its n_j rows that are no padding, with ``r_j = keep (1 + s_j - mean s)``, at most 1,
    and s the softmax over tiles of the summed scores of the whole view's rows there, divided by ``temperature``. Rows of a
    tile are ranked by its own scores plus those of the whole view, enlarged, both divided by their norm in the tile. Newline
    rows stay. An image without tiles, or a video frame, is a whole view alone.

    Training-free, and decided per image. Differs from the release: kept rows of the whole view stay in the order of the image
    (there by falling score), those of tiles at their true places (there the index among rows without padding is taken for one
    among all), all positions are those of the dense sequence (there numbered through), and lines of nothing but padding have no
    newline row, as Hugging Face's models leave them out. How many rows tiles keep depends on the scores: one read of the device
    per forward with tiled images.

    Attributes:
        score: ``cls``, the logits of the vision tower's CLS token for each patch in its last layer, mean over heads (CLIP
            towers with a row per patch, tiled or not); ``mean``, minus the cosine to the mean row of the view or tile.
    """

    paper: ClassVar[str] = "GlobalCom2, arXiv 2501.05179"
    skips: ClassVar[str] = "everything, for rows of a tile or view with low scores; the whole view shares the rows out"
    published: ClassVar[str] = "TFLOPs 41.7 to 3.8 (LLaVA-NeXT-7B, 10 % of the rows)"

    name: Literal["globalcom2"] = "globalcom2"
    keep: Keep = 0.25
    temperature: float = Field(10.0, gt=0)
    score: Literal["cls", "mean"] = "cls"

    def planner(self, layer: int, shape: DecoderShape) -> LayerPlanner | None:
        return GlobalCom2Planner(self, layer) if self.keep < 1 else None


class GlobalCom2Planner(LayerPlanner):
    drops = True

    def __init__(self, method: GlobalCom2, index: int):
        super().__init__()
        self.keep, self.temperature, self.by_cls = method.keep, method.temperature, method.score == "cls"
        if index == 0:
            self.needs = frozenset({VIEWS, VIT_LOGITS} if self.by_cls else {VIEWS})

    def forward(self, rows: RowMap, hidden: Tensor) -> LayerPlan:
        if not rows.has_vision:
            return LayerPlan.of(rows.everything)
        if "globalcom2" not in rows.memo:
            rows.memo["globalcom2"] = self.kept(rows, hidden)
        return LayerPlan.of(rows.memo["globalcom2"])

    def kept(self, rows: RowMap, hidden: Tensor) -> RowSet:
        """Every image as a whole view; then those with tiles anew."""
        score = rows.memo[VIT_LOGITS] if self.by_cls else distance(hidden, per_image(rows))
        kept, counts = topk_per_group(score, rows, self.keep, "trunc"), rows.kept_sizes(self.keep, "trunc")
        tiled = tiled_images(rows)
        if not tiled:
            return rows.text_and(kept, counts)
        order = (~rows.vision).flatten().to(torch.uint8).argsort(stable=True)  # vision rows first, in sequence order
        flat, sums = kept.flatten(), []
        for _, _, start, view in tiled:
            places = order[start : start + view.size]
            chosen = self.of_tiled(view, score.flatten()[places], hidden.flatten(0, 1)[places])
            flat = flat.index_copy(0, places, chosen)
            sums.append(chosen.sum())
        for (b, g, _, _), n in zip(tiled, torch.stack(sums).tolist()):
            counts[b][g] = n
        return rows.text_and(flat.view_as(kept), counts)

    def of_tiled(self, view: View, score: Tensor, rows: Tensor) -> Tensor:
        """``[size]`` bool of one image, of scores ``[size]`` and rows ``[size, hidden]``."""
        n, lines = view.side**2, (view.height, view.width + 1)
        whole, cells = score[:n], score[n:].view(lines)[:, :-1]
        if not self.by_cls:
            tile, inside = tiles_of(view, score.device).flatten(), rows[n:].view(*lines, -1)[:, :-1].flatten(0, 1)
            whole, cells = distance(rows[:n], tile.new_zeros(n)), distance(inside, tile)
        kept_whole, kept_cells = select(
            view, whole, cells.reshape(view.height, view.width), self.keep, self.temperature
        )
        return torch.cat([kept_whole, F.pad(kept_cells, (0, 1), value=True).flatten()])


def tiled_images(rows: RowMap) -> list[tuple[int, int, int, View]]:
    """Sample, number in it, place of its first row among all vision rows, and view of every image with tiles."""
    exact, start, found = rows.exact or rows, 0, []
    for b, sizes in enumerate(exact.sizes):
        views = rows.views[b] if rows.views is not None else ()
        for g, size in enumerate(sizes):
            view = views[g] if len(views) == len(sizes) else None
            if view is not None and view.size == size:  # all of its rows are there
                found.append((b, g, start, view))
            start += size
    return found


def per_image(rows: RowMap) -> Tensor:
    """``[B, S]``: a number for every image, 0 for rows of none."""
    most = max(map(len, rows.sizes))
    image = torch.arange(len(rows.sizes), device=rows.group.device)[:, None] * most + rows.group + 1
    return image.masked_fill(rows.group < 0, 0)


def distance(x: Tensor, group: Tensor) -> Tensor:
    """Minus the cosine of each row ``[..., hidden]`` to the mean of its ``group`` ``[...]``, in fp32 or wider."""
    flat = x.detach().flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32))
    index = group.flatten()
    total = flat.new_zeros(len(flat) + 1, flat.shape[1]).index_add(
        0, index, flat
    )  # more groups than rows there are not
    return -F.cosine_similarity(flat, total[index], dim=-1).view(group.shape)


def tiles_of(view: View, device: torch.device) -> Tensor:
    """``[height, width]``: the number of the tile that each cell lies in, in raster order."""
    line = (torch.arange(view.height, device=device) + view.top) // view.side
    column = (torch.arange(view.width, device=device) + view.left) // view.side
    return line[:, None] * view.tile_columns + column


def ratios(view: View, whole: Tensor, keep: float, temperature: float) -> Tensor:
    """The share that every tile keeps, ``[tiles]``, of the scores of the whole view ``[side * side]``."""
    place = torch.arange(view.side, device=whole.device)
    line = (place // (view.side // view.tile_rows)).clamp(max=view.tile_rows - 1)
    column = (place // (view.side // view.tile_columns)).clamp(max=view.tile_columns - 1)
    tile = (line[:, None] * view.tile_columns + column).flatten()
    total = whole.new_zeros(view.tile_rows * view.tile_columns).index_add(0, tile, whole)
    share = ((total - total.max()) / temperature).exp()
    share = share / (share.sum() + 1e-8)
    return (keep * (1 + share - share.mean())).clamp(max=1.0)


def combined(view: View, whole: Tensor, cells: Tensor) -> Tensor:
    """``[height, width]``: a tile's own scores and those of the whole view, each divided by its norm in the tile."""
    side, size = view.side, (view.height, view.width)
    enlarged = F.interpolate(whole.view(1, 1, side, side), size=size, mode="bilinear", align_corners=False)[0, 0]
    tile = tiles_of(view, whole.device).flatten()

    def unit(score: Tensor) -> Tensor:
        total = score.new_zeros(view.tile_rows * view.tile_columns).index_add(0, tile, score.flatten().square())
        return score / total.sqrt()[tile].view(size).clamp(min=torch.finfo(score.dtype).tiny)

    return unit(cells) + unit(enlarged)


def select(view: View, whole: Tensor, cells: Tensor, keep: float, temperature: float) -> tuple[Tensor, Tensor]:
    """Which rows of the whole view ``[side * side]`` and which cells ``[height, width]`` stay, by their scores."""
    first = group_ranks(whole[None], torch.zeros_like(whole[None], dtype=torch.long))[0]
    tile = tiles_of(view, whole.device).flatten()
    size = torch.zeros(view.tile_rows * view.tile_columns, device=whole.device, dtype=torch.float64)
    size = size.index_add(0, tile, torch.ones_like(tile, dtype=torch.float64))
    left = (size * ratios(view, whole, keep, temperature).double()).long()  # cut toward zero
    rank = group_ranks(combined(view, whole, cells).flatten()[None], tile[None])[0]
    return first < int(keep * view.side**2), (rank < left[tile]).view_as(cells)
