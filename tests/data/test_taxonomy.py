"""COIN's taxonomy as a workbook and as CSV, and the categories that a split holds."""

import json
import zipfile

import pytest

from tests.data.formats import COIN
from vtskip.data.coin import categories
from vtskip.data.taxonomy import read_taxonomy
from vtskip.errors import DataError

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
RELS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACK = "http://schemas.openxmlformats.org/package/2006/relationships"
DOMAINS = [["Domains", "Targets"], ["Electrical Appliance", "ReplaceCDDriveWithSSD"], ["Drink", "BrewLeafTea"]]
ACTIONS = [
    ["Target Id", "Target Label", "Action Id", "Action Label"],
    [41, "ReplaceCDDriveWithSSD", 207, "take out the CD drive"],
    [41, "ReplaceCDDriveWithSSD", 209, "process (crop, fold) paper"],
    [7, "BrewLeafTea", 1, "heat the water"],
]


def sheet(rows, strings):
    """Numbers as numbers, texts in the table of shared strings, as spreadsheet programs write them."""
    lines = []
    for r, row in enumerate(rows, 1):
        cells = ""
        for column, value in zip("ABCD", row):
            if isinstance(value, str):
                strings.append(value)
                cells += f'<c r="{column}{r}" t="s"><v>{len(strings) - 1}</v></c>'
            else:
                cells += f'<c r="{column}{r}"><v>{value}</v></c>'
        lines.append(f'<row r="{r}">{cells}</row>')
    return f'<worksheet xmlns="{MAIN}"><sheetData>{"".join(lines)}</sheetData></worksheet>'


def workbook(path, tables):
    strings = []
    sheets = [sheet(rows, strings) for rows in tables.values()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        names = "".join(f'<sheet name="{n}" sheetId="{i}" r:id="rId{i}"/>' for i, n in enumerate(tables, 1))
        archive.writestr(
            "xl/workbook.xml", f'<workbook xmlns="{MAIN}" xmlns:r="{RELS}"><sheets>{names}</sheets></workbook>'
        )
        rels = "".join(
            f'<Relationship Id="rId{i}" Target="worksheets/sheet{i}.xml"/>' for i in range(1, len(sheets) + 1)
        )
        archive.writestr("xl/_rels/workbook.xml.rels", f'<Relationships xmlns="{PACK}">{rels}</Relationships>')
        items = "".join(f"<si><t>{s}</t></si>" for s in strings)
        archive.writestr("xl/sharedStrings.xml", f'<sst xmlns="{MAIN}">{items}</sst>')
        for i, text in enumerate(sheets, 1):
            archive.writestr(f"xl/worksheets/sheet{i}.xml", text)
    return path


TABLES = {"domain_target_mapping": DOMAINS, "target_action_mapping": ACTIONS}


def test_the_workbook_and_its_words(tmp_path):
    taxonomy = read_taxonomy(workbook(tmp_path / "taxonomy.xlsx", TABLES))
    assert taxonomy.domains == {"ReplaceCDDriveWithSSD": "Electrical Appliance", "BrewLeafTea": "Drink"}
    assert taxonomy.steps["209"] == ("ReplaceCDDriveWithSSD", "process (crop, fold) paper")
    assert taxonomy.categories() == (
        ["brew leaf tea", "replace CD drive with SSD"],
        ["crop and fold paper", "heat the water", "take out the CD drive"],
    )


def test_the_table_as_csv(tmp_path, smoke):
    path = tmp_path / "taxonomy.csv"
    path.write_text("\n".join(",".join(f'"{v}"' for v in row) for row in ACTIONS))
    assert read_taxonomy(path).steps == read_taxonomy(workbook(tmp_path / "t.xlsx", TABLES)).steps
    assert len(read_taxonomy(smoke / "coin/taxonomy.csv").categories()[1]) > 10


def test_a_split_s_own_categories_are_fewer(tmp_path):
    path = tmp_path / "COIN.json"
    path.write_text(json.dumps(COIN))
    assert categories(path, "test") == (["brew leaf tea"], ["heat the water"])
    assert [len(names) for names in categories(path)] == [2, 4]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, r"cannot be read \(No such file"),
        (b"Target Label,Action Id\n", "no column 'Action Label'; present: Target Label, Action Id"),
        (b"Target Label,Action Id,Action Label\nA,,c\n", "row 2: no 'Action Id'"),
        (b"Target Label,Action Id,Action Label\n", "no steps"),
        (b"\xff\xfe", "not a CSV table"),
    ],
)
def test_broken_tables(tmp_path, content, message):
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path}: {message}"):
        read_taxonomy(path)


def test_broken_workbooks(tmp_path):
    path = tmp_path / "t.xlsx"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=f"{path}: not a workbook"):
        read_taxonomy(path)
    with pytest.raises(DataError, match="no sheet 'domain_target_mapping'; the file holds target_action_mapping"):
        read_taxonomy(workbook(path, {"target_action_mapping": ACTIONS}))
    whole = workbook(path, TABLES).read_bytes()
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=str(path)):
            read_taxonomy(path)
    for place in range(0, len(whole), 13):
        path.write_bytes(whole[:place] + b"~" + whole[place + 1 :])
        try:
            read_taxonomy(path)
        except DataError as e:
            assert str(path) in str(e)
