"""COIN's taxonomy: which steps exist, of which tasks, in which domains. From its workbook, or the same table as CSV.

``taxonomy.xlsx`` has the sheets ``domain_target_mapping`` (Domains, Targets) and ``target_action_mapping`` (Target Id,
Target Label, Action Id, Action Label). A CSV file has the columns of the second and, where it is known, Domain.
"""

import csv
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from vtskip.data.labels import step_words, task_words
from vtskip.data.rows import Row
from vtskip.errors import DataError

_NS = {
    "m": "http://schemas.openxmlformats.org/spreadsheetml/2006/main",
    "r": "http://schemas.openxmlformats.org/officeDocument/2006/relationships",
}
_COLUMNS = ("Target Label", "Action Id", "Action Label")
Table = list[dict[str, str]]


@dataclass(frozen=True)
class Taxonomy:
    """``domains``: task -> domain (empty where unknown). ``steps``: step id -> (task, label). All as in the file."""

    domains: dict[str, str]
    steps: dict[str, tuple[str, str]]

    def categories(self) -> tuple[list[str], list[str]]:
        """(tasks, steps) in words, sorted: the whole closed sets, whatever a split happens to hold."""
        labels = {step_words(label) for _, label in self.steps.values()}
        return sorted({task_words(task) for task in self.domains}), sorted(labels)


def read_taxonomy(path: str | Path) -> Taxonomy:
    """Raises DataError naming file and row for another kind of file, a missing sheet or column, an empty cell."""
    path = Path(path)
    domains: dict[str, str] = {}
    if path.suffix.lower() == ".xlsx":
        sheets = _workbook(path)
        for name in ("domain_target_mapping", "target_action_mapping"):
            if name not in sheets:
                raise DataError(f"{path}: no sheet {name!r}; the file holds {', '.join(sheets) or 'none'}")
        for row in _rows(path, sheets["domain_target_mapping"], ("Targets",)):
            domains[row["Targets"]] = row.get("Domains", "")
        table = sheets["target_action_mapping"]
    else:
        table = _csv(path)
    steps = {}
    for row in _rows(path, table, _COLUMNS):
        domains.setdefault(row["Target Label"], row.get("Domain", ""))
        steps[row["Action Id"]] = (row["Target Label"], row["Action Label"])
    if not steps:
        raise DataError(f"{path}: no steps in this file")
    return Taxonomy(domains, steps)


def _rows(path: Path, table: Table, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    for line, row in enumerate(table, 2):
        for column in columns:
            if not row.get(column):
                raise Row(path, f"row {line}").error(f"no {column!r}", "missing key")
        yield row


def _csv(path: Path) -> Table:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            missing = [c for c in _COLUMNS if c not in (rows.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path}: no column {missing[0]!r}; present: {', '.join(rows.fieldnames or ()) or 'none'}"
                )
            return [{k: v.strip() for k, v in row.items() if k and isinstance(v, str)} for row in rows]
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror or e})") from None
    except (UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path}: not a CSV table: {e}") from None


def _workbook(path: Path) -> dict[str, Table]:
    """Sheet name -> rows as dicts by the first row's cells. A workbook is a zip archive of XML files."""
    try:
        with zipfile.ZipFile(path) as archive:
            strings = []
            if "xl/sharedStrings.xml" in archive.namelist():
                strings = [_text(item) for item in _xml(archive, "xl/sharedStrings.xml").findall("m:si", _NS)]
            targets = {rel.get("Id"): rel.get("Target", "") for rel in _xml(archive, "xl/_rels/workbook.xml.rels")}
            sheets = {}
            for sheet in _xml(archive, "xl/workbook.xml").findall("m:sheets/m:sheet", _NS):
                target = targets[sheet.get(f"{{{_NS['r']}}}id")].removeprefix("/").removeprefix("xl/")
                sheets[sheet.get("name", "")] = _sheet(_xml(archive, f"xl/{target}"), strings)
            return sheets
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror or e})") from None
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        ElementTree.ParseError,
        zlib.error,
        NotImplementedError,
        RuntimeError,
    ) as e:
        raise DataError(f"{path}: not a workbook (.xlsx): {e}") from None
    except (KeyError, IndexError, ValueError, EOFError) as e:
        raise DataError(f"{path}: a damaged workbook: {e}") from None


def _xml(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    return ElementTree.fromstring(archive.read(name))


def _text(item: ElementTree.Element) -> str:
    return "".join(part.text or "" for part in item.iter(f"{{{_NS['m']}}}t"))


def _sheet(root: ElementTree.Element, strings: list[str]) -> Table:
    lines = []
    for row in root.findall("m:sheetData/m:row", _NS):
        cells: dict[str, str] = {}
        for number, cell in enumerate(row.findall("m:c", _NS)):
            column = re.match("[A-Z]+", cell.get("r", ""))
            value = cell.findtext("m:v", "", _NS)
            if cell.get("t") == "s":
                value = strings[int(value)]
            elif cell.get("t") == "inlineStr":
                value = _text(cell)
            cells[column[0] if column else str(number)] = value.strip()
        lines.append(cells)
    header = lines[0] if lines else {}
    return [{header[c]: v for c, v in cells.items() if c in header} for cells in lines[1:] if any(cells.values())]
