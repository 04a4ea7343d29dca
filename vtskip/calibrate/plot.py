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
    axes.bar(layers, mean, color=[CHOSEN if i in chosen else OTHER for i in layers], width=0.8)
    axes.scatter([i for i in layers for _ in values], values.T.reshape(-1).tolist(), s=4, color="#2b2d42", alpha=0.4)
    positive = [v for v in mean if v > 0]
    if not isinstance(scores, AttentionRanks) and positive and max(positive) > 100 * min(positive):
        axes.set_yscale("log")  # early layers outweigh the others by orders of magnitude
    axes.set_xlabel("decoder layer")
    axes.set_ylabel(LABELS[score])
    axes.set_xticks(range(0, len(mean), 1 if len(mean) <= 16 else 4))
    axes.set_title(f"{len(values)} prompts: {len(chosen)} of {len(mean)} layers skip", loc="left", fontsize=10)
    axes.legend(
        handles=[Patch(color=CHOSEN, label="skips"), Patch(color=OTHER, label="stays")], frameon=False, fontsize=8
    )
    axes.spines[["top", "right"]].set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()
