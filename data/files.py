"""JSON in with our errors, JSON out atomically."""

import json
from pathlib import Path
from typing import Any

from vtskip._files import write_atomic
from vtskip.errors import DataError


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises DataError that names the file (and line, for a syntax error)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror or e})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: not valid JSON: {e}") from None


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically."""
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())
