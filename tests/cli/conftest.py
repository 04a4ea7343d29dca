"""Fixtures of a tiny checkpoint and real clips."""

from tests.fixtures_stream import checkpoint, clips, copied, eval_config

__all__ = ["checkpoint", "clips", "copied", "eval_config"]
