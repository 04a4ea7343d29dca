"""One run at a time in a folder: a lock that the system gives back however its process ends."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vtskip.errors import ConfigError

LOCK_NAME = ".run.lock"
_held: set[Path] = set()  # record locks belong to a process, so two runs inside one are told apart here


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold ``folder`` (made if it is missing) for one run. Raises ConfigError where another one holds it.

    A record lock: a killed process leaves none behind, and loader processes that outlive it do not keep it.
    """
    key, existed = folder.resolve(), folder.exists()
    if key in _held:
        raise _refusal(folder, f"process {os.getpid()}, this one")
    folder.mkdir(parents=True, exist_ok=True)
    handle = _locked(folder)
    _held.add(key)
    try:
        os.truncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        _held.discard(key)
        (folder / LOCK_NAME).unlink(missing_ok=True)
        os.close(handle)
        if not existed and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def _locked(folder: Path) -> int:
    """A handle that holds the folder's lock file."""
    path = folder / LOCK_NAME
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except OSError:
            owner = _owner(path)
            os.close(handle)
            raise _refusal(folder, owner) from None
        os.close(handle)  # its last holder has just removed it


def _owner(path: Path) -> str:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        return f"process {row['pid']} on {row['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not said so yet
        return "of another process"


def _refusal(folder: Path, owner: str) -> ConfigError:
    return ConfigError(f"out {folder}: another run ({owner}) is writing there; wait for it or choose another folder")
