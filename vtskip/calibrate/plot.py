"""The picture of a calibration: one bar per layer, one dot per prompt, the chosen layers in colour."""

import io

from vtskip.calibrate.arank import AttentionRanks
from vtskip.calibrate.scores import LayerScores

LABELS = {"layer_contribution": "Layer Contribution (KL divergence)", "arank": "attention rank / prompt length"}
CHOSEN, OTHER = "#d1495b", "#8d99ae"


def picture(scores: LayerScores, chosen: list[int], score: str) -> bytes:
    """PNG bytes. No global state of matplotlib is used: other threads may draw at the same time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    values, mean = scores.scores.double(), scores.mean.tolist()
    layers = range(len(mean))
    figure = Figure(figsize=(max(6.0, 0.28 * len(mean) + 2), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = [CHOSEN if i in chosen else OTHER for i in layers]
    axes.bar(layers, mean, color=colours, width=0.8)
    axes.scatter([i for i in layers for _ in values], values.T.reshape(-1).tolist(), s=4, color="#2b2d42", alpha=0.4)
    if not isinstance(scores, AttentionRanks) and max(mean) > 0:  # early layers outweigh others by orders of magnitude
        floor = max(mean) * 1e-5
        axes.set_yscale("log")
        axes.set_ylim(floor)
        for i in layers:
            if mean[i] <= floor:  # the last layer always: nothing reads its vision rows
                axes.annotate("0", (i, 0.02), xycoords=("data", "axes fraction"), ha="center", color=colours[i])
    axes.set_xlabel("decoder layer")
    axes.set_ylabel(LABELS[score])
    axes.set_xticks(range(0, len(mean), 1 if len(mean) <= 16 else 4))
    axes.set_title(f"{len(values)} prompts: {len(chosen)} of {len(mean)} layers skip", loc="left", fontsize=10)
    axes.legend(
        handles=[Patch(color=CHOSEN, label="skips"), Patch(color=OTHER, label="stays")],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=2,
        frameon=False,
        fontsize=8,
    )
    axes.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()
