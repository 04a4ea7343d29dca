"""Compositions: who chooses among which rows, what is refused, and that everything around a method takes several of them."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vtskip
from tests.methods_matrix import MATRIX, composed, listed
from tests.tiny import FAMILIES
from vtskip.errors import ConfigError, VtskipError
from vtskip.loading import saved_method
from vtskip.methods import get_method
from vtskip.plan import LIVE, SCORES, UNIFORM, DecoderShape, RowMap
from vtskip.runtime.attach import attached
from vtskip.saving import CONFIG_NAME, WEIGHTS_NAME, method_state

FAMILY = FAMILIES["llava-llama"]
KINDS = ["long", "short", "text"]
EVERY = {"kind": "constant"}
DOC = Path(__file__).parents[2] / "docs" / "methods-together.md"


@pytest.fixture
def model():
    return FAMILY.model()


def logits(model, kinds=KINDS, **kwargs):
    with torch.no_grad():
        return model(**FAMILY.batch(kinds), **kwargs).logits


def random_routers(model, seed=0):
    for parameter in method_state(model).values():
        parameter.normal_(generator=torch.Generator().manual_seed(seed + parameter.numel()))


def planners(*methods, layers=1, hidden=2):
    """The planners of a composition, their routers scoring a row by its first feature."""
    found = get_method([*methods]).planners(DecoderShape(layers, hidden, 8, 1, 1, 8, 8))
    for planner in filter(None, found):
        for name, parameter in planner.named_parameters():
            parameter.data.zero_()
            if name.endswith("weight"):
                parameter.data[..., 0] = 1.0
        planner.eval()
    return found


def sample():
    """Two samples: t v v v v t v v v v t, groups of four; and behind padding t t v v v v t. Rows' first feature is a score."""
    vision = np.array([[0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0], [0] * 6 + [1] * 4 + [0]], bool)
    valid = np.array([[1] * 11, [0] * 4 + [1] * 7], bool)
    score = torch.tensor([[0, 4, 3, 2, 1, 0, 5, 6, 7, 8, 0], [9] * 6 + [1, 2, 3, 4] + [0]]) / 10
    return RowMap.build(vision, valid, [[4, 4], [4]]), torch.stack([score, torch.zeros_like(score)], -1)


def places(rows):
    """The vision rows of a set by sample; all text is in it."""
    whole, _ = sample()
    assert (rows.mask & whole.text.mask).equal(whole.text.mask) and not (rows.mask & ~whole.valid).any()
    assert rows.bounds or tuple(rows.mask.sum(1).tolist()) == rows.counts
    return [row.nonzero().flatten().tolist() for row in rows.mask & whole.vision]


# ---------------------------------------------------------------- alone, and in the order of the list


@pytest.mark.parametrize("row", [row for row in MATRIX if row.spec["name"] != "compose"], ids=str)
def test_a_method_beside_one_that_does_nothing_is_itself(model, row):
    """Through the composition's own planner: logits, auxiliary loss, gradients and a cache that goes on, bit for bit."""
    batch = FAMILY.batch(KINDS)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)

    def run(spec):
        with vtskip.attach(model.eval(), spec) as handle:
            random_routers(model)
            ids = model.generate(
                **{k: v for k, v in batch.items() if k != "position_ids"}, max_new_tokens=2, do_sample=False
            )
            plain = logits(model)
            loss = model.train()(**batch, labels=labels, use_cache=False).loss
            model.zero_grad()
            loss.backward()
            gradients = [p.grad for n, p in model.named_parameters() if "vtskip" not in n]
            routers = [p.grad for p in [q for n, q in model.named_parameters() if "vtskip" in n]]
            return ids, plain, loss, gradients, routers, handle.report().as_dict() | {"method": ""}

    ours, alone = run([row.spec, "dense"]), run(row.spec)
    assert all(torch.equal(a, b) for a, b in zip(ours[:3], alone[:3]))
    for own, other in ((ours[3], alone[3]), (ours[4], alone[4])):
        assert len(own) == len(other)
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(own, other))
    assert ours[5] == alone[5]


def test_a_list_of_one_is_this_one():
    method = get_method([{"name": "mod", "keep": 0.3}])
    shape = DecoderShape(4, 8, 8, 1, 1, 8, 8)
    assert [type(p).__name__ for p in method.planners(shape)] == ["NoneType", "ModPlanner"] * 2


def test_compositions_inside_are_unfolded():
    inner = composed({"name": "fastv"}, {"name": "shortv", "layers": [5]})
    method = get_method(["mod", inner, [{"name": "skip_ffn"}]])
    assert [m.name for m in method.methods] == ["mod", "fastv", "shortv", "skip_ffn"]
    assert method == get_method(json.loads(method.model_dump_json())) and method.methods[2].layers == [5]


def test_the_second_chooses_among_the_rows_of_the_first():
    """mod keeps two of each four by score; skip_ffn runs the FFN of every other one of these."""
    rows, hidden = sample()
    (planner,) = planners({"name": "mod", "keep": 0.5, "schedule": EVERY}, {"name": "skip_ffn", "keep": 0.5})
    plan = planner(rows, hidden)
    assert plan.attend is plan.expose is plan.cache and plan.ffn.counts == (3 + 2, 3 + 1)
    assert places(plan.attend) == [[1, 2, 8, 9], [8, 9]] and places(plan.ffn) == [[1, 8], [8]]
    gain = torch.where(plan.attend.mask & rows.vision, hidden[..., 0].sigmoid(), 1.0)
    assert plan.gain_on == "output" and plan.gain_row.equal(gain)  # kept rows without FFN are weighed, too


def test_behind_a_ranking_of_the_sample_rows_of_the_sample_compete():
    rows, hidden = sample()
    by_frame = {"name": "mod", "keep": 0.25, "schedule": EVERY}
    (split,) = planners({"name": "uniform", "keep": 1.0, "schedule": EVERY}, by_frame)
    assert places(split(rows, hidden).attend) == [[1, 9], [9]]
    (planner,) = planners({"name": "pmod", "schedule": {"kind": "constant", "keep": 0.5}}, by_frame)
    assert places(planner(rows, hidden).attend) == [[9], [9]]  # of [6, 7, 8, 9] and [8, 9]


def test_a_third_chooses_among_the_rows_of_the_second_behind_such_a_ranking():
    rows, hidden = sample()
    rows.memo[SCORES, 0] = hidden[..., 0] * rows.vision
    fastv, mod = {"name": "fastv", "keep": 0.75, "layer": 1}, {"name": "mod", "keep": 0.6, "schedule": listed(1)}
    planner = planners(mod, {"name": "skip_ffn", "keep": 0.5}, fastv, layers=2)[1]
    plan = planner(rows, hidden)
    assert rows.memo[LIVE].sum(1).tolist() == [9, 6]  # rows 1, 2, 6, 7, 8, 9 and 7, 8, 9 beside the text
    assert places(plan.attend) == [[6, 7, 8, 9], [8, 9]] and places(plan.ffn) == [[6, 8], [8]]


def test_gains_multiply_and_each_weighs_what_those_behind_it_leave():
    rows, hidden = sample()
    mod = {"name": "mod", "keep": 0.5, "schedule": EVERY}
    (planner,) = planners(mod, {"name": "pmod", "schedule": {"kind": "constant", "keep": 0.5}})
    plan = planner(rows, hidden)
    assert places(plan.attend) == [[8, 9], [9]]
    score = hidden[..., 0]
    s, w = score.sigmoid(), 1 + 0.2 * score.tanh()
    expected = torch.ones_like(score)
    expected[0, [1, 2]], expected[1, 8] = (
        (s * w)[0, [1, 2]],
        (s * w)[1, 8],
    )  # kept by mod, skipped by pmod: s times its w x
    expected[0, [8, 9]], expected[1, 9] = s[0, [8, 9]], s[1, 9]
    torch.testing.assert_close(plan.gain_row, expected)
    assert plan.gain_skipped and plan.gain_ffn[0, 9] == w[0, 9]
    (planner,) = planners(mod | {"combine": "delta"}, {"name": "uniform", "keep": 0.5, "schedule": EVERY})
    plan = planner(rows, hidden)
    assert plan.gain_on == "delta" and not plan.gain_skipped and places(plan.attend) == [[1, 8], [8]]
    torch.testing.assert_close(plan.gain_row[rows.vision & plan.attend.mask], s[rows.vision & plan.attend.mask])


# ---------------------------------------------------------------- rows that are gone


def test_two_drops_and_a_router_in_time():
    """fastv drops half of the rows before layer 1, pyramid_drop half of what is left before layer 2: wherever they are."""
    rows, hidden = sample()
    rows.memo[SCORES, 0] = rows.memo[SCORES, 2] = hidden[..., 0] * rows.vision
    rows.memo[SCORES, 2] = -rows.memo[SCORES, 2]
    mod, fastv = {"name": "mod", "keep": 0.5, "schedule": listed(1, 3)}, {"name": "fastv", "keep": 0.5, "layer": 1}
    pyramid = {"name": "pyramid_drop", "layers": [2], "keep": [0.5]}
    for order in ([mod, fastv, pyramid], [pyramid, fastv, mod]):
        memo = dict(rows.memo)
        found = planners(*order, layers=4)
        plans = []
        for planner in found:
            rows = rows.to(torch.device("cpu"))  # as at the border of two devices: what is one set stays one
            plans.append(planner(rows, hidden))
        assert [places(plan.attend) for plan in plans] == [
            [[1, 2, 3, 4, 6, 7, 8, 9], [6, 7, 8, 9]],
            [[8, 9], [9]],
            [[6, 7], [8]],
            [[7], [8]],
        ]
        assert plans[0].score and not any(plan.attend.bounds for plan in plans)
        assert rows.memo[LIVE].equal(plans[2].attend.mask)
        rows, hidden = sample()
        rows.memo |= memo


def test_a_share_that_is_more_than_there_is():
    """aim keeps a share of the rows it merged; where others have dropped more, it drops no more, and brings none back."""
    rows, hidden = sample()
    hidden = torch.cat([hidden, torch.ones_like(hidden)], -1)
    rows.memo |= {(SCORES, i): (1 + hidden[..., 0]) * rows.vision for i in range(3)}
    aim, fastv = {"name": "aim", "keep": 0.75, "first": 1, "stop": 5}, {"name": "fastv", "keep": 0.2, "layer": 1}
    found = planners(aim, fastv, layers=3, hidden=4)
    merged, few, same = (planner(rows, hidden) for planner in found)
    assert [len(row) for row in places(merged.attend)] == [6, 3] and merged.edit is not None
    assert [len(row) for row in places(few.attend)] == [2, 1]  # of 6 and 3
    assert places(same.attend) == places(few.attend) and same.attend is few.attend


def test_where_two_thin_out_the_ffn_the_smaller_number_is_a_bound():
    rows, hidden = sample()
    vision = {"name": "skip_vision", "retain": "first", "keep": 2, "merged": None, "summaries": False, "drop_kv": False}
    (planner,) = planners({"name": "mod", "keep": 0.5, "schedule": EVERY}, vision)
    plan = planner(rows, hidden)
    assert places(plan.attend) == [[1, 2, 8, 9], [8, 9]] and places(plan.ffn) == [[1, 2], []]
    assert plan.ffn.bounds and plan.ffn.counts == (3 + 4, 3 + 2) and plan.expose is plan.cache is plan.attend


def test_the_order_of_drops_and_others_does_not_matter(model):
    parts = [{"name": "mod", "keep": 0.4}, {"name": "early_exit", "layer": 3}, {"name": "fastv", "keep": 0.5}]
    seen = []
    for order in (parts, parts[::-1]):
        with vtskip.attach(model, [*order]):
            random_routers(model)
            seen.append(logits(model))
    assert torch.equal(*seen)


def test_rows_that_a_layer_does_not_show_get_no_attention_there(model):
    """fastv ranks by layer 1, where mod runs as many rows as fastv is to leave: these."""
    spec = [{"name": "fastv", "keep": 0.4}, {"name": "mod", "keep": 0.4, "schedule": listed(1)}]
    with vtskip.attach(model, spec) as handle:
        for seed in range(3):
            random_routers(model, seed)
            logits(model, ["short"])
            ran, left = (handle.last_plans[i].attend.mask for i in (1, 2))
            assert left.equal(ran) and not left.all()


def test_the_next_sees_what_has_been_rewritten():
    """aim joins the rows at even places to the next one, where that is no row of its own any more."""
    rows, hidden = sample()
    hidden[0, 1:5, 0] = torch.tensor([0.9, 0.1, 0.9, 0.5])
    aim, mod = {"name": "aim", "keep": 0.5, "first": None}, {"name": "mod", "keep": 0.5, "schedule": EVERY}
    for methods in ([aim, mod], [mod, aim]):
        (planner,) = planners(*methods)
        assert places(planner(rows, hidden).attend) == [[2, 9], [9]]  # (0.9 + 0.1 + 0.9) / 3 above 0.5
        rows, _ = sample()
    with_norm = planners({"name": "gamma_mod", "keep": 0.5, "schedule": EVERY, "aux_weight": 0.0}, aim)[0]
    with_norm.methods["0"].router.weight.data[0] = 0
    assert places(with_norm(rows, hidden * 0, lambda x: hidden).attend) == [[7, 9], [9]]  # by the normed rows


def test_text_gates_with_a_drop_go_on_with_their_cache(model):
    """A method that plans every step beside one that knows vision alone: generation equals the recomputed sequence."""
    spec = [
        {"name": "mindskip", "granularity": "row", "layers": [0, 3], "std": 1.0},
        {"name": "early_exit", "layer": 2},
    ]
    batch = {k: v for k, v in FAMILY.batch(["short"]).items() if k != "position_ids"}
    with vtskip.attach(model, spec):
        out = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False, output_logits=True)
        ids = out if torch.is_tensor(out) else out.sequences
        whole = batch | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            again = model(**whole).logits[:, -5:-1].index_fill(2, torch.tensor([2]), -torch.inf).argmax(-1)
    assert torch.equal(again, ids[:, -4:])


def test_without_vision_rows_those_that_know_no_others_are_asked_only_where_all_have_to_be():
    rows, hidden = RowMap.build(np.zeros((1, 3), bool)), torch.zeros(1, 3, 2)
    pyramid = {"name": "pyramid_drop", "layers": [0], "keep": [0.5]}
    (planner,) = planners({"name": "mindskip", "granularity": "row", "layers": [0]}, pyramid)
    rows.memo[UNIFORM] = False
    plan = planner(rows, hidden)
    assert planner.every_step and rows.is_all(plan.attend) and "compose" in rows.memo
    rows.memo[UNIFORM] = True
    with pytest.raises(KeyError, match="scores"):  # which the executor then has
        planner(rows, hidden)


# ---------------------------------------------------------------- what is refused

SHORTV = {"name": "shortv", "layers": [2]}
MOD = {"name": "mod", "keep": 0.5, "schedule": EVERY}
GATES = {"name": "mindskip", "granularity": "row", "layers": [2]}
VISION = {"name": "skip_vision", "retain": "even"}


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        (
            [SHORTV, MOD],
            "layer 2: shortv runs no vision row there, so that nothing is left for mod; give them different",
        ),
        ([MOD, {"name": "layer_skip"}], "layer 1: layer_skip runs no vision row there"),
        (
            [{"name": "skip_ffn"}, MOD],
            "layer 0: skip_ffn thins out what rows run, mod which rows run: list mod before skip_ffn",
        ),
        (
            [GATES, MOD],
            "layer 2: mindskip decides about text rows too, and mod chooses among vision rows: list mindskip behind",
        ),
        ([GATES, {"name": "gamma_mod", "text": "routed", "schedule": EVERY}], "layer 2: .*both decide about text"),
        ([VISION, {"name": "aim", "first": None}], "layer 0: skip_vision and aim both rewrite rows; use one of them"),
        (
            [VISION, {"name": "globalcom2"}],
            "layer 0: globalcom2 ranks rows by their place in the image, .* list globalcom2 before skip_vision",
        ),
        (
            [{"name": "pyramid_drop", "layers": [0], "keep": [0.5]}, VISION],
            "layer 0: pyramid_drop ranks rows by their attention as they come in, where skip_vision still rewrites",
        ),
        (
            [{"name": "fastv", "layer": 2}, {"name": "aim", "keep": 1.0, "first": 1, "stop": 4}],
            "layer 1: fastv and aim score its rows in different ways",
        ),
        (
            [MOD | {"combine": "delta"}, {"name": "pmod", "schedule": EVERY}],
            "layer 0: mod weighs the delta .* pmod its output",
        ),
    ],
)
def test_a_collision_names_layer_and_methods(model, methods, words):
    before = list(model.state_dict())
    with pytest.raises(ConfigError, match=words):
        vtskip.attach(model, methods)
    assert list(model.state_dict()) == before and attached(model) is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ([], "methods: .*at least 1"),
        ({"name": "compose"}, "missing key 'methods'"),
        (composed(MOD) | {"keep": 0.2}, "unknown key 'keep'"),
        ([MOD, {"name": "fastw"}], "methods: number 1: .*unknown method 'fastw'; did you mean 'fastv'"),
        ([{"name": "mod", "keeep": 0.2}], "number 0: .*unknown key 'keeep'; did you mean 'keep'"),
        ([3], "number 0: .*3.*accepted: a mapping with 'name', a name, the path of a YAML file, or a list of such"),
        ({"name": "compose", "methods": "mod"}, "methods: .*list"),
    ],
)
def test_a_faulty_item_is_named(spec, words):
    with pytest.raises(ConfigError, match=words):
        get_method(spec)


# ---------------------------------------------------------------- files


def test_saved_and_loaded(model, tmp_path):
    spec = [{"name": "mod", "keep": 0.4, "schedule": listed(1, 2)}, {"name": "pmod"}, {"name": "fastv", "keep": 0.6}]
    vtskip.attach(model, spec)
    random_routers(model)
    vtskip.save_pretrained(model, tmp_path)
    keys = set(load_file(tmp_path / WEIGHTS_NAME))
    assert {"layers.1.methods.0.router.weight", "layers.3.methods.1.router.bias"} <= keys and len(keys) == 2 * (2 + 3)
    other = FAMILY.model()
    assert vtskip.load_pretrained(other, tmp_path).method == attached(model).method
    assert torch.equal(logits(other), logits(model))
    card = (tmp_path / "README.md").read_text()
    assert (
        "# `mod` + `pmod` + `fastv` for" in card and "p-MoD, arXiv 2412.04449" in card and "trained parameters" in card
    )
    assert "- compose\n- mod\n- pmod\n- fastv\n" in card
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))


def test_a_newer_file_may_have_more_keys_in_an_item():
    config = {"vtskip_version": "99.0", "method": composed({"name": "mod", "later": 1, "keep": 0.3}, {"name": "fastv"})}
    with pytest.warns(UserWarning, match="left out methods.0.later"):
        assert saved_method(config, Path(CONFIG_NAME)).methods[0].keep == 0.3
    with pytest.raises(VtskipError, match="unknown key 'later'"):
        saved_method(config | {"vtskip_version": "0.1.0"}, Path(CONFIG_NAME))


def test_every_example_of_the_text_attaches(model):
    text = DOC.read_text()
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        import yaml

        with vtskip.attach(model, yaml.safe_load(block)["method"]) as handle:
            assert logits(model).isfinite().all() and handle.report().flops_ratio < 0.9
