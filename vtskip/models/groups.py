"""Sizes of the selection groups (images, frames, tiles) in the order of their placeholder tokens.

One function for each way the processors of Hugging Face lay vision rows out. Each is ``(modality, here, inputs, config) ->
sizes`` over the whole batch; ``here`` ``[B, S]`` marks the placeholders of that modality. None means that the runs of
placeholders are the groups. ``generate`` encodes images and videos once before its prefill and replaces the pixel inputs by
``mm_encoder_outputs``: the sizes then come from the encoded features and must be the same as in a direct forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vtskip.errors import ModelError
from vtskip.plan import View

Sizes = list[int] | None
GroupSizes = Callable[[str, np.ndarray, dict[str, Any], Any], Sizes]
PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}


def _pixels(modality: str, inputs: dict[str, Any]) -> torch.Tensor | None:
    return next((p for name in PIXELS[modality] if isinstance(p := inputs.get(name), torch.Tensor)), None)


def _encoded(modality: str, inputs: dict[str, Any]) -> Any:
    return (inputs.get("mm_encoder_outputs") or {}).get(modality)


def cut_up(modality: str, inputs: dict[str, Any]) -> bool:
    """Whether the encoded features are those of a chunk of a prefill: one item, with parts of any images."""
    encoded = _encoded(modality, inputs)
    return encoded is not None and getattr(encoded, "last_hidden_state", None) is None


def _encoded_sizes(modality: str, inputs: dict[str, Any]) -> Sizes:
    """Rows of each item of features that were encoded beforehand."""
    encoded = _encoded(modality, inputs)
    return None if encoded is None else [len(item) for item in encoded.pooler_output]


def _equal_parts(rows: int, parts: int) -> list[int]:
    if parts == 0 or rows % parts:
        raise ModelError(f"{rows} placeholder tokens cannot be shared evenly by {parts} images or frames")
    return [rows // parts] * parts


def _pairs(image_sizes: Any) -> list[tuple[int, int]]:
    return [(int(h), int(w)) for h, w in torch.as_tensor(image_sizes).tolist()]


def _side(config: Any) -> int:
    """Patches along one side of the tower's input."""
    return config.vision_config.image_size // config.vision_config.patch_size


def runs(modality: str, here: np.ndarray, inputs: dict[str, Any], config: Any) -> Sizes:
    """Every run of placeholders is a group: the template puts text around each image (with its tiles) and each frame."""
    return None


def images(modality: str, here: np.ndarray, inputs: dict[str, Any], config: Any) -> Sizes:
    """One group per image: of equal size, or of the size that ``image_sizes`` (pixels) says where images keep theirs."""
    shapes, pixels = inputs.get("image_sizes"), _pixels(modality, inputs)
    if shapes is not None:
        patch = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
        return [(h // patch) * (w // patch) for h, w in _pairs(shapes)]
    if pixels is not None:
        return _equal_parts(int(here.sum()), pixels.shape[0])
    return _encoded_sizes(modality, inputs)


def frames(modality: str, here: np.ndarray, inputs: dict[str, Any], config: Any) -> Sizes:
    """One group per video frame, all of equal size; encoded features come frame by frame."""
    pixels = _pixels(modality, inputs)
    if pixels is None:
        return _encoded_sizes(modality, inputs)
    return _equal_parts(int(here.sum()), pixels.shape[0] * pixels.shape[1])


def pooled_frames(modality: str, here: np.ndarray, inputs: dict[str, Any], config: Any) -> Sizes:
    """LLaVA-NeXT-Video: one group per frame of a video, pooled; encoded features come video by video."""
    if _pixels(modality, inputs) is None and _encoded(modality, inputs) is None:
        return None
    side = _side(config) // config.spatial_pool_stride
    return _equal_parts(total := int(here.sum()), total // side**2)


def anyres_images(modality: str, here: np.ndarray, inputs: dict[str, Any], config: Any) -> Sizes:
    """LLaVA-NeXT and OneVision: one group per image, its whole view and its tiles without padding, with newline rows."""
    shapes = inputs.get("image_sizes")
    if shapes is None:
        return _encoded_sizes(modality, inputs)
    pairs, alone = _pairs(shapes), inputs.get("batch_num_images")
    side = _side(config)
    # Several images in one sample are not cut into tiles: their whole view and one newline row.
    tiled = (
        [True] * len(pairs) if alone is None else [n == 1 for n in torch.as_tensor(alone).tolist() for _ in range(n)]
    )
    return [side**2 + (_tile_rows(pair, side, config) if cut else 1) for pair, cut in zip(pairs, tiled, strict=True)]


def _tile_rows(pair: tuple[int, int], side: int, config: Any) -> int:
    """Rows of an image's tiles: joined to one grid, cut to the image's aspect ratio, one newline row per grid row."""
    view = view_of(pair, side, config)
    rows, columns = view.height, view.width
    limit = getattr(config, "vision_aspect_ratio", None)  # OneVision: "anyres_max_9" shrinks a grid above 9 tiles
    if limit is not None:
        ratio = math.sqrt(rows * columns / (int(limit.removeprefix("anyres_max_")) * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return rows * columns + rows


def view_of(pair: tuple[int, int], side: int, config: Any) -> View:
    """How the rows of an image of ``pair`` (height, width) pixels lie, if its grid is not shrunk."""
    from transformers.image_processing_utils import select_best_resolution  # loaded with the model; slow without one

    size = config.vision_config.image_size
    lines, across = (n // size for n in select_best_resolution(pair, config.image_grid_pinpoints))
    rows, columns, top, left = side * lines, side * across, 0, 0
    height, width = pair
    if width / height > columns / rows:
        top = (rows - int(round(height * (columns / width), 7))) // 2
    else:
        left = (columns - int(round(width * (rows / height), 7))) // 2
    return View(side, lines, across, top, left, rows - 2 * top, columns - 2 * left)


def anyres_views(image_sizes: Any, config: Any) -> list[View]:
    """LLaVA-NeXT: the view of every image of a batch, of their ``image_sizes`` in pixels."""
    side = _side(config)
    return [view_of(pair, side, config) for pair in _pairs(image_sizes)]


def frames_and_newline(modality: str, here: np.ndarray, inputs: dict[str, Any], config: Any) -> Sizes:
    """OneVision: a video is frames of equal size and one closing newline row, which joins the last frame."""
    pixels, encoded = _pixels(modality, inputs), _encoded(modality, inputs)
    if pixels is None and encoded is None:
        return None
    videos = pixels.shape[0] if pixels is not None else len(encoded.pooler_output)
    sizes = []
    for total in _equal_parts(int(here.sum()), videos):
        per_frame = _equal_parts(total - 1, (total - 1) // math.ceil(_side(config) / 2) ** 2)
        sizes += [*per_frame[:-1], per_frame[-1] + 1]
    return sizes


def tiles(modality: str, here: np.ndarray, inputs: dict[str, Any], config: Any) -> Sizes:
    """SmolVLM, Idefics3: one group per tile, each between tokens that name its row and column; a video frame is one tile."""
    pixels, encoded = _pixels(modality, inputs), _encoded(modality, inputs)
    if encoded is not None:
        patches = encoded.last_hidden_state.shape[1]
    elif pixels is not None:
        height, width = (n // config.vision_config.patch_size for n in pixels.shape[-2:])
        patches = height * width
    else:
        return None
    return _equal_parts(total := int(here.sum()), total // (patches // config.scale_factor**2))


def grids(modality: str, here: np.ndarray, inputs: dict[str, Any], config: Any) -> Sizes:
    """Qwen-VL and GLM-V grids: ``t`` groups of ``h * w / merge^2`` rows per image or video.

    ``generate`` drops the grids; the height and width positions then tell where a frame begins: they return to those of the
    first row. GLM-V marks a video's rows with the image token; its frames are runs, as its own positions demand.
    """
    grid = inputs.get(f"{modality}_grid_thw")
    if grid is None:
        positions = inputs.get("position_ids")
        return _grids_from_positions(here, positions) if positions is not None and positions.dim() == 3 else None
    merge = config.vision_config.spatial_merge_size**2
    return [h * w // merge for t, h, w in grid.tolist() for _ in range(t)]


def _grids_from_positions(here: np.ndarray, positions: torch.Tensor) -> list[int]:
    """Frame sizes from M-RoPE positions ``[3 or 4, B, S]`` (time, height, width last)."""
    height_width = positions[-2:].expand(-1, here.shape[0], -1).cpu().numpy()
    sizes = []
    for row, places in zip(here, height_width.swapaxes(0, 1)):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        for start, stop in zip(edges[::2], edges[1::2]):
            run = places[:, start:stop]
            first = np.flatnonzero((run == run[:, :1]).all(0))
            sizes += np.diff([*first, stop - start]).tolist()
    return sizes


def merged_grids(modality: str, here: np.ndarray, inputs: dict[str, Any], config: Any) -> Sizes:
    """VideoLLaMA 3: grids with a merge size each; the compression mask leaves fewer rows of a frame, or none.

    Without grids (in ``generate``) frames are runs, for the template writes their time between them.
    """
    grid, merge = inputs.get(f"{modality}_grid_thw"), inputs.get(f"{modality}_merge_sizes")
    if grid is None or merge is None:
        return _encoded_sizes(modality, inputs) if modality == "image" else None
    sizes = [h * w // m**2 for (t, h, w), m in zip(grid.tolist(), merge.tolist()) for _ in range(t)]
    kept = inputs.get("video_compression_mask") if modality == "video" else None
    if kept is None:
        return sizes
    return [n for part in kept.cpu().split(sizes) if (n := int(part.sum()))]


def streamed_frames(modality: str, here: np.ndarray, inputs: dict[str, Any], config: Any) -> Sizes:
    return _equal_parts(int(here.sum()), int(here.sum()) // config.frame_tokens)
