"""Measured time beside modelled work, on stock decoders with random weights.

``config`` says what is run, ``subjects`` who runs it, ``measure`` times it, ``record`` puts it together, ``tables`` and
``picture`` show it; ``stream`` is the bench of frame-by-frame steps, which has a configuration and a record of its own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtskip.config import apply_overrides, parse, read_yaml
from vtskip.errors import ConfigError
from vtskip.eval.bench import record as _record
from vtskip.eval.bench import stream as _stream
from vtskip.eval.bench.clock import cpu_peak_bytes
from vtskip.eval.bench.config import BenchConfig
from vtskip.eval.bench.stream_config import StreamConfig
from vtskip.eval.bench.subjects import CONTROL, label
from vtskip.eval.bench.tables import markdown

__all__ = ["CONTROL", "BenchConfig", "StreamConfig", "cpu_peak_bytes", "label", "load", "markdown", "run"]

AnyConfig = BenchConfig | StreamConfig
KINDS: dict[str, type[AnyConfig]] = {"bench": BenchConfig, "bench_stream": StreamConfig}


def load(path: Path | None, overrides: list[str] | None = None, kind: str = "bench") -> AnyConfig:
    """A file of ``configs/bench/``, by its key ``kind``; without a file the defaults of ``kind``.

    Raises ConfigError that names file, key, value and what is accepted.
    """
    values = {} if path is None else read_yaml(path)
    kind = values.get("kind", kind)
    if kind not in KINDS:
        raise ConfigError(f"{path}: kind {kind!r}; accepted: {', '.join(KINDS)}")
    return parse(KINDS[kind], apply_overrides(values, overrides or [], KINDS[kind]), str(path or "vtskip bench"))


def run(
    config: AnyConfig, progress: Callable[[str], None] | None = None, journal: Path | None = None
) -> dict[str, Any]:
    """Measure and return the record. ``journal``: a folder for finished rounds, so that a bench that was killed goes on."""
    if isinstance(config, StreamConfig):
        return _stream.run(config, progress, journal)
    return _record.run(config, progress, journal)
