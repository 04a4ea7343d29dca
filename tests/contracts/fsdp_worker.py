"""One process of the FSDP2 test: runs every case sharded and whole, and writes down how far apart they are.

Run by torchrun with a JSON file of cases. The first rank's batch has frames, the others' has none.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import vtskip
from tests.tiny_stream import tiny, video
from vtskip.errors import ModelError
from vtskip.saving import method_state


def batch_of(config, rank):
    """A prompt of two frames, or one without any; labels for what is not a frame."""
    words = [i for i in range(20) if i not in (config.frame_id, config.interval_id)][4:14]
    frame = [config.frame_id] * config.frame_tokens
    ids = words[:3] + frame + words[3:5] + frame + words[5:7] if rank == 0 else words[:9]
    ids = torch.tensor([ids])
    labels = ids.roll(-1, 1).masked_fill(ids == config.frame_id, -100)
    labels[:, -1] = -100
    return {"input_ids": ids, "labels": labels} | ({"frames": video(2)} if rank == 0 else {})


def prepared(case):
    model, _ = tiny(dtype=torch.float64)
    if case["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def shard(model):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def step(model, rank):
    """Loss of one rank's batch after its backward pass, and how often the decoder's FFNs were called."""
    calls = []
    hooks = [layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1)) for layer in model.get_decoder().layers]
    loss = model(**batch_of(model.config, rank)).loss
    loss.backward()
    for hook in hooks:
        hook.remove()
    return loss.item(), len(calls)


def whole(case, ranks):
    """Loss per rank, mean gradients and gathered rows of the unsharded model."""
    model = prepared(case)
    vtskip.attach(model, case["method"])
    losses = [step(model, rank)[0] for rank in range(ranks)]
    state = {k: t.clone() for k, t in method_state(model).items()}
    return losses, {name: p.grad / ranks for name, p in model.named_parameters() if p.grad is not None}, state


def distance(ours, theirs):
    """Largest difference over tensors of the same names; infinite where the names differ."""
    if ours.keys() != theirs.keys():
        return float("inf")
    return max((float((ours[k] - theirs[k]).abs().max()) for k in theirs), default=0.0)


def compare(case, rank, ranks):
    losses, gradients, state = whole(case, ranks)
    model = prepared(case)
    if not case["attach_late"]:
        vtskip.attach(model, case["method"])
    shard(model)
    if case["attach_late"]:
        try:
            vtskip.attach(model, case["method"])
        except ModelError as e:
            return {"refused": str(e)}
    loss, calls = step(model, rank)
    sharded = {n: p.grad.full_tensor() for n, p in model.named_parameters() if p.grad is not None}
    saved = {k: t.full_tensor() for k, t in method_state(model).items()}
    return {
        "loss": abs(loss - losses[rank]),
        "gradients": distance(sharded, gradients),
        "largest": max(float(g.abs().max()) for g in gradients.values()),
        "parameters": len(sharded),
        "state": distance(saved, state),
        "calls": calls,
        "cut": min(p.to_local().numel() / p.numel() for p in model.get_decoder().layers[1].mlp.parameters()),
    }


warnings.filterwarnings("error", "FSDP2-wrapped module .* returned a view")
settings = json.loads(Path(sys.argv[1]).read_text())
dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
results = [compare(case, rank, ranks) for case in settings["cases"]]
Path(settings["report"], f"rank{rank}.json").write_text(json.dumps(results))
dist.destroy_process_group()
