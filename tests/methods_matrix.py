"""One row per method: how the shared tests run it on four layers, with and without anything skipped."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MethodRow:
    """
    Attributes:
        spec: skips something in a four-layer model.
        nothing: the same method with an empty list of layers.
        all_rows: the same method with every row kept and unit gain; None where the method has no such setting.
        causal_cache: cached decoding equals recomputation (False where later rows see less by design).
        recomputed: a longer sequence in one pass selects the same rows (False where its last row takes part).
        moves: puts values into other rows of their image (refused where features are added to rows by their place).
        kept_ffn: some layer runs the FFN on fewer of the vision rows than this, even with images of four rows.
        chunked: feeding image by image equals one shot (False where all images of a sample compete).
        text_is_stock: batches of text alone run as in the stock model.
        compact: numbers the rows it runs anew; refused where a model has more than one table of 1-D positions.
    """

    name: str
    spec: dict[str, Any]
    nothing: dict[str, Any]
    all_rows: dict[str, Any] | None = None
    causal_cache: bool = True
    chunked: bool = True
    recomputed: bool = True
    text_is_stock: bool = True
    compact: bool = False
    kept_ffn: float = 0.6
    moves: bool = False

    def __str__(self) -> str:
        return self.name


def listed(*layers: int) -> dict[str, Any]:
    return {"kind": "list", "layers": list(layers)}


def composed(*methods: dict[str, Any]) -> dict[str, Any]:
    return {"name": "compose", "methods": [*methods]}


PREDICTOR = {"width": 16, "heads": 2, "ffn": 24}

MATRIX = [
    MethodRow(
        "mod",
        {"name": "mod", "keep": 0.3},
        {"name": "mod", "schedule": listed()},
        {"name": "mod", "keep": 1.0, "combine": "none", "schedule": {"kind": "constant"}},
    ),
    MethodRow(
        "mod-all-delta",
        {"name": "mod", "keep": 0.4, "combine": "delta", "always_keep": "last", "schedule": {"kind": "constant"}},
        {"name": "mod", "combine": "delta", "schedule": listed()},
    ),
    MethodRow(
        "pmod",
        {"name": "pmod", "schedule": {"kind": "shifted_cosine", "max_keep": 0.95}},
        {"name": "pmod", "schedule": listed()},
        {"name": "pmod", "schedule": {"kind": "constant"}},
        chunked=False,
    ),
    MethodRow(
        "gamma_mod",
        {"name": "gamma_mod", "keep": 0.4, "schedule": {"kind": "constant"}},
        {"name": "gamma_mod", "schedule": listed()},
        chunked=False,
    ),
    MethodRow(
        "gamma_mod-threshold",
        {"name": "gamma_mod", "inference": "threshold", "threshold": 0.5, "shared": False, "schedule": listed(0, 2, 3)},
        {"name": "gamma_mod", "inference": "threshold", "schedule": listed()},
        kept_ffn=0.9,
    ),
    MethodRow(
        "gamma_mod-published",
        {
            "name": "gamma_mod",
            "text": "routed",
            "inference": "threshold",
            "threshold": 0.5,
            "decode_threshold": 0.5,
            "positions": "compact",
            "schedule": listed(1, 2, 3),
        },
        {"name": "gamma_mod", "text": "routed", "positions": "compact", "schedule": listed()},
        kept_ffn=0.9,
        text_is_stock=False,
        compact=True,
    ),
    MethodRow(
        "mindskip",
        {"name": "mindskip", "layers": [0, 1, 2], "std": 1.0, "seed": 3},
        {"name": "mindskip", "layers": []},
        {"name": "mindskip", "layers": [0, 1, 2, 3]},
        kept_ffn=1.1,  # its FFN is dense
        chunked=False,
        recomputed=False,
        text_is_stock=False,
    ),
    MethodRow(
        "mindskip-row",
        {"name": "mindskip", "granularity": "row", "layers": [0, 2, 3], "std": 1.0},
        {"name": "mindskip", "granularity": "row", "layers": []},
        {"name": "mindskip", "granularity": "row", "layers": [0, 1, 2, 3]},
        kept_ffn=1.1,
        text_is_stock=False,
    ),
    MethodRow(
        "mindskip-row-vision",
        {"name": "mindskip", "granularity": "row", "text": "dense", "layers": [1, 2], "std": 1.0},
        {"name": "mindskip", "granularity": "row", "text": "dense", "layers": []},
        kept_ffn=1.1,
    ),
    MethodRow(
        "fastv",
        {"name": "fastv", "keep": 0.3, "layer": 2},
        {"name": "fastv", "layer": 4},
        {"name": "fastv", "keep": 1.0, "layer": 2},
        chunked=False,
        recomputed=False,
    ),
    MethodRow("shortv", {"name": "shortv", "layers": [0, 1, 3]}, {"name": "shortv", "layers": []}),
    MethodRow(
        "skip_ffn",
        {"name": "skip_ffn", "keep": 0.3},
        {"name": "skip_ffn", "schedule": listed()},
        {"name": "skip_ffn", "keep": 1.0},
    ),
    MethodRow(
        "skip_ffn-drop_kv",
        {"name": "skip_ffn", "retained": [0, 2], "drop_kv": True},
        {"name": "skip_ffn", "drop_kv": True, "schedule": listed()},
        {"name": "skip_ffn", "keep": 1.0, "drop_kv": True},
        causal_cache=False,
    ),
    MethodRow(
        "skip_vision",
        {"name": "skip_vision", "retain": "even", "keep": 0.3, "merged": 0.5, "pass_last": True, "drop_kv": False},
        {"name": "skip_vision", "retain": "even", "keep": 1.0},
        kept_ffn=0.9,
        moves=True,
    ),
    MethodRow(
        "skip_vision-drop_kv",
        {"name": "skip_vision", "retain": "first", "keep": 2, "merged": None},
        {"name": "skip_vision", "retain": "first", "keep": 1.0, "summaries": False},
        kept_ffn=0.9,
        moves=True,
        causal_cache=False,
    ),
    MethodRow(
        "random",
        {"name": "random", "keep": 0.3, "seed": 3},
        {"name": "random", "schedule": listed()},
        {"name": "random", "keep": 1.0},
    ),
    MethodRow(
        "uniform",
        {"name": "uniform", "keep": 0.3, "schedule": {"kind": "list", "layers": [0, 2, 3], "keep": [0.5, 0.3, 0.2]}},
        {"name": "uniform", "schedule": listed()},
        {"name": "uniform", "keep": 1.0},
    ),
    MethodRow(
        "pyramid_drop",
        {"name": "pyramid_drop", "layers": [1, 3], "keep": [0.6, 0.3]},
        {"name": "pyramid_drop", "layers": [4], "keep": [0.5]},
        {"name": "pyramid_drop", "layers": [0, 2], "keep": [1.0, 1.0]},
        chunked=False,
        recomputed=False,
    ),
    MethodRow(
        "aim",
        {"name": "aim", "keep": 0.5, "first": 0, "stop": 3},
        {"name": "aim", "keep": 1.0, "first": None},
        chunked=False,
        recomputed=False,
        moves=True,
    ),
    MethodRow(
        "aim-merge",
        {"name": "aim", "keep": 0.3, "first": None},
        {"name": "aim", "keep": 1.0, "first": 8, "stop": 9},
        moves=True,
    ),
    MethodRow(
        "aim-prune",
        {"name": "aim", "keep": 1.0, "first": 0, "stop": 4},
        {"name": "aim", "keep": 1.0, "first": None},
        chunked=False,
        recomputed=False,
    ),
    MethodRow(
        "globalcom2",
        {"name": "globalcom2", "keep": 0.5, "score": "mean"},
        {"name": "globalcom2", "keep": 1.0, "score": "mean"},
        kept_ffn=0.7,
    ),
    MethodRow(
        "dynamic_llava",
        {"name": "dynamic_llava", "keep": 0.5, "layer": 1, **PREDICTOR},
        {"name": "dynamic_llava", "layer": 4, **PREDICTOR},
        causal_cache=False,
    ),
    MethodRow(
        "dynamic_llava-image",
        {"name": "dynamic_llava", "keep": 0.3, "text_keep": None, **PREDICTOR},
        {"name": "dynamic_llava", "layer": 9, "text_keep": None, **PREDICTOR},
        {"name": "dynamic_llava", "keep": 1.0, "text_keep": None, **PREDICTOR},
    ),
    MethodRow(
        "layer_skip",
        {"name": "layer_skip"},
        {"name": "layer_skip", "schedule": listed()},
    ),
    MethodRow("early_exit", {"name": "early_exit", "layer": 2}, {"name": "early_exit", "layer": 4}),
    MethodRow(
        "fastv+shortv",
        composed({"name": "fastv", "keep": 0.5, "layer": 2}, {"name": "shortv", "layers": [0, 3]}),
        composed({"name": "fastv", "layer": 4}, {"name": "shortv", "layers": []}),
        chunked=False,
        recomputed=False,
    ),
    MethodRow(
        "mod+skip_vision",
        composed(
            {"name": "mod", "keep": 0.6, "schedule": listed(0, 2)},
            {"name": "skip_vision", "retain": "even", "keep": 0.4, "merged": 0.7, "drop_kv": False},
        ),
        composed({"name": "mod", "schedule": listed()}, {"name": "skip_vision", "retain": "even", "keep": 1.0}),
        composed(
            {"name": "mod", "keep": 1.0, "combine": "none", "schedule": {"kind": "constant"}},
            {"name": "skip_vision", "retain": "even", "keep": 1.0},
        ),
        kept_ffn=0.9,
        moves=True,
    ),
    MethodRow(
        "pmod+skip_ffn",
        composed(
            {"name": "pmod", "schedule": {"kind": "constant", "keep": 0.7}},
            {"name": "skip_ffn", "keep": 0.4, "drop_kv": True},
        ),
        composed({"name": "pmod", "schedule": listed()}, {"name": "skip_ffn", "schedule": listed()}),
        composed({"name": "pmod", "schedule": {"kind": "constant"}}, {"name": "skip_ffn", "keep": 1.0}),
        chunked=False,
        causal_cache=False,
    ),
]
