"""Damaged annotation files give one of our errors or load: no other traceback, no hang."""

import copy
import json
import random
import signal
import traceback
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.data import formats
from vtskip.data import iterate
from vtskip.data.synthetic.bayes import ceilings_of
from vtskip.data.synthetic.relevance import rasterise, read_relevance
from vtskip.errors import VtskipError

MUTATIONS = 150  # per file
HANG = 60  # seconds: no file here takes a tenth of one
ODD = [
    None, True, False, 0, -1, 1, 10**400, -(10**30), 0.0, -0.0, 1e308, float("nan"), float("inf"), -float("inf"), "", " ",
    "\x00", "../../..", "/", ".", "a", "b", "NaN", "1:30", "\ud800", "\U0001f373 مرحبا 你好\u202e", "\u3000", "<image>",
    "<video><image>", "x" * 100_000, "a/" * 3000, [], {}, [[]], [None], {"": None}, [0.5, 0.4], ["a"] * 10_000,
]  # fmt: skip


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield from places(one, (*path, key))


def nested(depth, rng):
    value = rng.choice([1, "x"])
    for _ in range(depth):
        value = [value] if rng.random() < 0.5 else {"segments": value}
    return value


def times_swapped(node, rng):
    pairs = [(a, a.replace("start", "end")) for a in node if "start" in a and a.replace("start", "end") in node]
    if pairs:
        a, b = rng.choice(pairs)
        node[a], node[b] = node[b], node[a]
    elif isinstance(node.get("segment"), list):
        node["segment"].reverse()


def change(value, rng):
    """A copy with one place changed in one way."""
    value = copy.deepcopy(value)
    path = rng.choice([p for p in places(value) if p] or [()])
    if not path:
        return rng.choice(ODD)
    node = value
    for key in path[:-1]:
        node = node[key]
    key, kind = path[-1], rng.randrange(8)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[rng.choice([str(key)[:-1], str(key) + "s", "", "\ud800"])] = node.pop(key)
    elif kind == 2 and isinstance(node, dict):
        times_swapped(node, rng)
    elif kind == 3:
        node[key] = nested(rng.choice([1, 3, 200, 900]), rng)
    elif kind == 4 and isinstance(node[key], int | float):
        node[key] = node[key] * rng.choice([-1, 0, 2, 100, 1e9]) + rng.choice([0, 0.5, 1e-9])
    elif kind == 5:
        other = rng.choice([p for p in places(value) if p])
        found = value
        for part in other:
            found = found[part]
        node[key] = copy.deepcopy(found)
    elif kind == 6 and isinstance(node, list):
        node[key:key] = [copy.deepcopy(node[key])] * rng.choice([1, 50])
    else:
        node[key] = rng.choice(ODD)
    return value


def damage(data, rng):
    """The bytes of a file, cut or spoiled."""
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(6)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + rng.choice([b"\xff\xfe", b"\x00", b"{", b"]", b'"', b",", b"NaN", b"9" * 5000]) + data[at:]
    if kind == 2:
        return data[:at] + data[at + rng.randrange(1, 9) :]
    if kind == 3:
        return data[:at] + b"[" * 100_000 + data[at:]
    if kind == 4:
        return rng.choice(
            [b"", b"null", b"\xef\xbb\xbf" + data, data.decode().encode("utf-16"), data + data, b"[" + data]
        )
    return data[:at].replace(b"a", b"\\ud83d", 2) + data[at:]


@contextmanager
def no_hang():
    def stop(*_):
        raise TimeoutError(f"still reading after {HANG} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(one, path, media, on_error):
    """``loaded``, ``refused``, or the traceback of anything else."""
    try:
        with no_hang():
            for sample in iterate(one.config(path, media, on_error=on_error)):
                json.dumps(sample.meta)
                for turn in sample.conversation:
                    assert turn["num_frames"] >= 1 if turn["role"] == "stream" else turn["content"].encode()
        return "loaded"
    except VtskipError as e:
        assert len(str(e)) < 2000
        return "refused"
    except Exception:
        return traceback.format_exc()


# What a synthetic set holds beside the published formats: places of areas, and what it was made by.
AREAS = {"uid": "a", "frames": 3, "kinds": [], "areas": [[3, 0, 2, 0.1, 0.1, 0.6, 0.6], [1, 1, 3, 0.5, 0, 1, 1]]} | {
    "camera": [[0.0, 0.01], [0.1, 0], [0, 0]]
}
MANIFEST = {"recipe": {"version": 3, "tier": "full", "seed": 0, "grammar": "tasks", "holdout": "pairs"}, "clips": {}}


def areas_read(path):
    value = read_relevance(path)
    return [rasterise(value, frame, (3, 3)) for frame in range(3)]


OWN = {"relevance.json": (AREAS, areas_read), "manifest.json": (MANIFEST, lambda path: ceilings_of(path.parent))}


def cases(folder):
    """Every format; the files that a format needs beside its own are damaged in its place as well."""
    found = list(formats.formats(folder))
    by_name = {one.name: one for one in found}
    lta, atomic = by_name["fho_lta_train.json"], by_name["atomic_descriptions_train.json"]
    yield from ((one, None) for one in found)
    yield replace(lta, name="fho_lta_taxonomy.json", value=formats.LTA_TAXONOMY), lta
    yield replace(atomic, name="takes.json", value=formats.TAKES), atomic
    lists = folder / "splits.json"
    keystep = replace(by_name["keystep_train.json"], keys={"splits": lists, "split": "train"})
    splits = {"split_to_take_uids": {"train": ["t1", "gone"], "val": []}, "take_uid_to_benchmark": {"t1": ["keystep"]}}
    yield replace(keystep, name=lists.name, value=splits), keystep


NUMBER = 19


@pytest.mark.slow
@pytest.mark.parametrize("number", range(NUMBER))
def test_a_damaged_file_loads_or_is_refused(tmp_path, media, number):
    damaged, user = list(cases(tmp_path))[number]
    rng = random.Random(number)
    seen = Counter()
    for turn in range(MUTATIONS):
        if turn % 3 == 2:
            path = damaged.write(tmp_path)
            path.write_bytes(damage(path.read_bytes(), rng))
        else:
            path = damaged.write(tmp_path, change(damaged.value, rng))
        kept = path.read_bytes()
        main = path if user is None else user.write(tmp_path)
        result = outcome(user or damaged, main, media, ["stop", "skip"][turn % 2])
        assert result in ("loaded", "refused"), f"{damaged.kind} {turn}\n{kept[:3000]!r}\n{result}"
        seen[result] += 1
    assert seen["refused"] >= MUTATIONS // 10 and seen["loaded"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_a_damaged_file_of_a_synthetic_set_is_read_or_refused(tmp_path, name):
    value, read = OWN[name]
    path, rng, seen = tmp_path / name, random.Random(name), Counter()
    for turn in range(2 * MUTATIONS):
        data = json.dumps(value if turn % 3 == 2 else change(value, rng)).encode()
        path.write_bytes(damage(data, rng) if turn % 3 == 2 else data)
        with no_hang():
            try:
                read(path)
            except VtskipError as e:
                assert path.name in str(e) or "frame" in str(e) or "hold-out" in str(e)
                seen["refused"] += 1
            else:
                seen["loaded"] += 1
    assert min(seen.values()) >= MUTATIONS // 10 and len(seen) == 2


def test_there_are_enough_mutations(tmp_path):
    assert len(list(cases(tmp_path))) == NUMBER and NUMBER * MUTATIONS >= 2000
