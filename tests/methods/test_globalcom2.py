"""GlobalCom2 on LLaVA-NeXT: the tower's logits on every row, tiles that share rows out, ``generate`` and beams."""

import copy
import pickle

import pytest
import torch

import vtskip
from tests.tiny import ENCODES_FIRST, FAMILIES
from vtskip.errors import ModelError
from vtskip.plan import VIT_LOGITS

CLS = {"name": "globalcom2", "keep": 0.5, "temperature": 1e-5}
KINDS = ["long", "short", "text"]
TILED = FAMILIES["llava_next"]


@pytest.fixture(scope="module")
def model():
    return TILED.model()


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def eager_logits(model, pixels):
    """What eager attention of the tower's last layer has before its softmax: its logarithm, up to a number per query."""
    tower = copy.deepcopy(model.model.vision_tower)
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        maps = tower(pixels, output_attentions=True).attentions[-1].double()
    return maps[:, :, 0, 1:].log().mean(1)


def of_images(model):
    """Tiles of each image of ``long`` and ``short``, the whole view first."""
    parts = [part["pixel_values"][0].double() for kind in ("long", "short") for part in TILED.sample(kind)[1]]
    return [eager_logits(model, part) for part in parts]


def test_scores_lie_where_their_patches_do(model):
    """Against the image model's own way of joining tiles, with the scores in the place of features."""
    batch = TILED.batch(KINDS)
    with vtskip.attach(model, CLS) as handle:
        logits(model, batch)
        rows = handle.last_rows
    found, tiles = rows.memo[VIT_LOGITS], of_images(model)
    newline = torch.full((1,), torch.nan, dtype=torch.float64)

    def packed(of_tiles):
        return model.model.pack_image_features(
            [t[..., None] for t in of_tiles], batch["image_sizes"], "default", newline
        )[0]

    expected = packed(tiles)
    numbers = packed([torch.arange(len(t)).double()[:, None].expand_as(t) for t in tiles])
    images = found[rows.vision].split([n for sizes in rows.sizes for n in sizes])
    for ours, theirs, number in zip(images, expected, numbers):
        theirs, number = theirs[:, 0], number[:, 0]
        real = ~theirs.isnan()
        assert (ours[~real] == 0).all() and int((~real).sum()) in (4, 8)
        for j in range(3):  # every tile has a query of its own, whose logits the softmax shows up to a number
            a, b = ours[number == j], theirs[number == j]
            assert len(a) == 16 and (a - a.mean() - b + b.mean()).abs().max() < 1e-5 < b.std()
    assert (found[~rows.vision] == 0).all()


def test_kept_rows(model):
    """Of a whole view a half by score, all newlines, and of two tiles more in the one where the whole view looks."""
    with vtskip.attach(model, CLS) as handle:
        logits(model, TILED.batch(KINDS))
        rows, kept = handle.last_rows, handle.last_plans[0].attend
    at = 0
    flat, score = kept.mask[rows.vision], rows.memo[VIT_LOGITS][rows.vision]
    for sizes, views, count, text in zip(rows.sizes, rows.views, kept.counts, rows.text_counts):
        total = 0
        for size, view in zip(sizes, views):
            part, own = flat[at : at + size], score[at : at + size]
            assert set(own[:16].topk(8).indices.tolist()) == set(part[:16].nonzero().flatten().tolist())
            lines = part[16:].view(view.height, view.width + 1)
            assert lines[:, -1].all()
            halves = lines[:, :-1].chunk(2, dim=1 if view.tile_columns == 2 else 0)
            looks = own[:16].view(4, 4).chunk(2, dim=1 if view.tile_columns == 2 else 0)
            few, many = sorted(range(2), key=lambda i: float(looks[i].sum()))
            # 0.5 (1 +- 0.5) of 16 rows; the published softmax has 1e-8 in its denominator, so 12 falls just short.
            assert (int(halves[few].sum()), int(halves[many].sum())) == (4, 11)
            total, at = total + int(part.sum()), at + size
        assert count == text + total
    assert all(plan.attend is kept for plan in handle.last_plans.values())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_equals_single_samples(model, side):
    batch = TILED.batch(KINDS, side)
    with vtskip.attach(model, CLS):
        together = logits(model, batch)
        for i, kind in enumerate(KINDS):
            real = batch["attention_mask"][i].bool()
            assert (together[i][real] - logits(model, TILED.batch([kind]))[0]).abs().max() <= TILED.tolerance


def test_a_hidden_image_leaves_with_its_view(model):
    batch = TILED.batch(["long"])
    start, rows = TILED.starts("long")[1], TILED.sample("long")[2]
    batch["attention_mask"][0, start : start + rows[1]] = 0
    with vtskip.attach(model, {**CLS, "score": "mean"}) as handle:
        logits(model, batch)
        assert handle.last_rows.sizes == ((rows[0],),) and handle.last_rows.views[0][0].size == rows[0]


@pytest.mark.skipif(not ENCODES_FIRST, reason="repeats images one by one")
def test_generate_and_beams(model):
    """Images are encoded before the prefill, and shared by the sequences of a sample."""
    batch = TILED.batch(KINDS)
    batch.pop("position_ids")
    settings = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False)
    with vtskip.attach(model, CLS) as handle:
        logits(model, batch)
        kept, views = handle.last_plans[0].attend.mask, handle.last_rows.views
        model.generate(**batch, **settings)
        assert torch.equal(handle.last_plans[0].attend.mask, kept) and handle.last_rows.views == views
        beams = model.generate(**batch, num_beams=2, **settings)[:, -3:]
        assert torch.equal(handle.last_plans[0].attend.mask, kept.repeat_interleave(2, 0))
        for i, kind in enumerate(KINDS):
            alone = TILED.batch([kind])
            alone.pop("position_ids")
            assert torch.equal(model.generate(**alone, num_beams=2, **settings)[0, -3:], beams[i])


def test_detached_and_copied(model):
    batch = TILED.batch(KINDS)
    stock, keys = logits(model, batch), set(model.model.__dict__)
    with vtskip.attach(model, CLS):
        ours = logits(model, batch)
        twin = copy.deepcopy(model)
    assert set(model.model.__dict__) == keys
    assert torch.equal(logits(model, batch), stock) and not torch.equal(ours, stock)
    assert torch.equal(logits(twin, batch), ours)
    fresh = TILED.model()
    vtskip.attach(fresh, CLS)
    assert torch.equal(logits(pickle.loads(pickle.dumps(fresh)), batch), ours)


def test_an_image_without_tiles_keeps_its_best_rows():
    family = FAMILIES["llava-llama"]
    model, batch = family.model(), family.batch(["long", "text"])
    expected = eager_logits(model, batch["pixel_values"])
    with vtskip.attach(model, CLS) as handle:
        logits(model, batch)
        kept = handle.last_plans[3].attend.mask[handle.last_rows.vision].view(2, 16)
    best = expected.topk(8).indices.sort().values
    assert torch.equal(kept.nonzero()[:, 1].view(2, 8), best)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision", "internvl"])
def test_towers_without_a_cls_token_are_refused_with_a_way_out(name):
    with pytest.raises(ModelError, match=r"globalcom2: score 'cls' cannot work on .*; use score: mean"):
        vtskip.attach(FAMILIES[name].model(), CLS)
