"""The numbers of docs/routing.md are those of its records, which were made of committed code."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "routing.md").read_text(encoding="utf-8")
RECORDS = [json.loads((ROOT / "eval" / "records" / f"routing_seed{seed}.json").read_text()) for seed in (0, 1)]
GUESSED = {"model": "random_trained", "oracle": "— oracle's rows", "anti_oracle": "— anti-oracle's rows"}
GUESSED |= {"motion": "— rows that move", "blind": "— blind"}
WORDS = ("colour_accuracy", "verb_accuracy", "shape_accuracy", "correctness")
HEAD = ("row", "colour", "verb", "shape", "correctness", "PPL", "recall / chance", "FLOPs")


def both(row: str, *keys: str) -> str:
    """A value of both seeds by its path in the records' rows; empty where a row has no such value."""
    values = []
    for record in RECORDS:
        value = {"row": record["tasks"]["streams"]["rows"][row], "all": record["accuracy"][row]["strict"]}
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        values.append("" if value is None else f"{value:.2f}")
    return " / ".join(values) if any(values) else ""


def table() -> str:
    """One line per row: seed 0 / seed 1, and the interval of seed 0's colours."""
    first = RECORDS[0]["tasks"]["streams"]
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for row in sorted(first["rows"], key=lambda row: row not in GUESSED):
        cells = [both(row, "row", "strict", metric, "value") for metric in WORDS]
        low, high = (first["rows"][row]["strict"][WORDS[0]][side] for side in ("low", "high"))
        cells[0] += f" [{low:.2f}, {high:.2f}]"
        cells += [both(row, "all", "ppl_token"), both(row, "row", "router", "enrichment", "value")]
        cells += [f"{first['cost'][row]['flops_ratio']:.2f}"]
        lines.append(f"| {GUESSED.get(row, row)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_table_is_that_of_the_records():
    assert table() in TEXT
    for seed in (0, 1):
        assert f"eval/records/routing_seed{seed}.json" in TEXT


@pytest.mark.parametrize("seed", [0, 1])
def test_the_records_are_of_committed_code_and_of_the_shipped_file(seed):
    from vtskip.config import load_config
    from vtskip.eval.config import EvalConfig

    shipped = load_config(EvalConfig, ROOT / "configs" / "eval" / "routing.yaml").model_dump(mode="json")
    record = json.loads(json.dumps(RECORDS[seed]).replace(f"/s{seed}/", "/s0/"))
    for key in ("model", "data", "rows", "checkpoints", "threshold", "max_samples"):
        assert record["config"][key] == shipped[key], key
    assert record["provenance"]["git"]["dirty"] is False
    assert record["n_videos"] == 77
