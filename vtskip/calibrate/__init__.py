"""Which layers of a model may skip: ShortV's Layer Contribution and gamma-MoD's attention rank, measured on prompts.

``vtskip calibrate CONFIG`` (``vtskip.calibrate.run``) does it for a StreamingLlava checkpoint and a data section of a YAML
file. Any other model is calibrated from Python, on inputs of its own processor.
"""

from vtskip.calibrate.arank import AttentionRanks, arank, attention_rank
from vtskip.calibrate.contribution import LayerContribution, layer_contribution

__all__ = ["AttentionRanks", "LayerContribution", "arank", "attention_rank", "layer_contribution"]
