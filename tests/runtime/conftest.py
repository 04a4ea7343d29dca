"""Which cells of the method x family matrix run by default; the others are ``slow``."""

import pytest

from tests.tiny import FAMILIES as ALL

# Every method runs on these; every family runs these methods (one per seam: block, query, branch with gains).
FAMILIES = {"llava-llama", "llava-mistral", "llava_onevision", "qwen2_5_vl"}
METHODS = {"mod", "shortv", "pmod"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if not {"family", "row"} <= params.keys():
            continue
        if params["family"] not in FAMILIES and params["row"].name not in METHODS:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def applies(request):
    """Methods that cannot apply to a family; that they are refused is tested in ``tests/methods``.

    Compact positions need one table of 1-D positions; rows do not move where DeepStack features are added by place.
    """
    params = getattr(getattr(request.node, "callspec", None), "params", {})
    if not {"family", "row"} <= params.keys():
        return
    row, family = params["row"], ALL[params["family"]]
    if row.compact and (family.mrope or family.name == "gemma3"):
        pytest.skip("refused: no compact positions")
    if row.moves and family.name.startswith("qwen3_vl"):
        pytest.skip("refused: DeepStack adds features by place")
