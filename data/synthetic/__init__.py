"""A procedural data set in COIN's and Ego4D's own formats: a hand at work on a table, real H.264 video.

``make(tier, out, seed)`` writes it. ``grammar`` and ``tasks`` hold what it can say, ``plan`` and ``task_plan`` what happens in a
clip, ``bayes`` what can be known of it.
"""

from vtskip.data.synthetic.tiers import TIERS, make

__all__ = ["TIERS", "make"]
