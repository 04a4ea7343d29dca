"""The errors a user can meet. Every message names what was wrong, the value, and what is accepted."""

from collections.abc import Iterable
from difflib import get_close_matches


class VtskipError(ValueError):
    """Base of all errors that are the input's fault. The command line prints it on one line and exits with ``exit_code``.

    A message can always be written as UTF-8, whatever of the input it quotes: JSON may hold lone surrogates.
    """

    exit_code = 2

    def __init__(self, *args: object) -> None:
        super().__init__(*(a.encode("utf-8", "backslashreplace").decode() if isinstance(a, str) else a for a in args))


class ConfigError(VtskipError):
    """A configuration file, key or value."""


class DataError(VtskipError):
    """An annotation file; the message names file and row."""


class VideoError(DataError):
    """A video that is missing, empty, truncated or has no video stream."""


class ModelError(VtskipError):
    """A model, layer or cache that a method cannot run on."""


class CheckpointError(VtskipError):
    """A checkpoint that is damaged or belongs to another base model."""


def nearest(name: str, options: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` or an empty string, for the end of an error message."""
    match = get_close_matches(str(name), [str(o) for o in options], n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def one_line(error: BaseException) -> str:
    """What another library's error says, without its line breaks."""
    return " ".join(str(error).split())
