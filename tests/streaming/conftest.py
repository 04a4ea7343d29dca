"""A trained checkpoint and its clips."""

from tests.fixtures_stream import checkpoint, clips

__all__ = ["checkpoint", "clips"]
