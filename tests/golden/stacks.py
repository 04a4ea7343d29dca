"""Stock models with the weights of a golden item, shared by the tests of whole stacks."""

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaModel

TOLERANCE = 5e-5


def configuration(item, layers: int) -> LlamaConfig:
    c = item.json["config"]
    return LlamaConfig(
        hidden_size=c["hidden_size"],
        intermediate_size=c["intermediate_size"],
        num_hidden_layers=layers,
        num_attention_heads=c["heads"],
        num_key_value_heads=c.get("kv_heads", c["heads"]),
        rms_norm_eps=c["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": c["rope_theta"]},
        max_position_embeddings=4096,
        vocab_size=c.get("vocab", 8),
        attn_implementation="sdpa",
    )


def weights_of(item) -> dict[str, torch.Tensor]:
    """Weights by their names in a model; some items of one layer name them without it."""
    names = {k: k.removeprefix("weights.") for k in item.tensors if k.startswith("weights.")}
    alone = ("self_attn.", "mlp.", "input_layernorm.", "post_attention_layernorm.", "router.")
    return {f"layers.0.{n}" if n.startswith(alone) else n: item.tensors[k] for k, n in names.items()}


def load_weights(model, item, absent: set[str]) -> None:
    """Every weight of ``model`` but those ``absent`` from the item; router weights are left for after attach."""
    weights = weights_of(item)
    known = model.state_dict().keys()
    missing = known - weights.keys() - absent
    assert not missing, f"{item.name} lacks {sorted(missing)}"
    model.load_state_dict({k: v for k, v in weights.items() if k in known}, strict=False)


def stock_model(item, layers: int) -> LlamaModel:
    """A LlamaModel with the item's sizes and weights."""
    model = LlamaModel(configuration(item, layers)).eval()
    load_weights(model, item, {"embed_tokens.weight", *(() if layers > 1 else ("norm.weight",))})
    return model


def stock_causal_lm(item, layers: int) -> LlamaForCausalLM:
    """The same with its LM head."""
    model = LlamaForCausalLM(configuration(item, layers)).eval()
    load_weights(model.model, item, {"embed_tokens.weight"})
    model.lm_head.weight.data.copy_(item.tensors["weights.lm_head.weight"])
    return model


def load_routers(model: LlamaModel, item) -> None:
    routers = {k.replace(".router.", ".vtskip.router."): v for k, v in weights_of(item).items() if ".router." in k}
    assert not model.load_state_dict(routers, strict=False).unexpected_keys


def layer_outputs(model: LlamaModel) -> list[torch.Tensor]:
    outputs: list[torch.Tensor] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    return outputs


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance


def decode(model: LlamaModel, rows: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """Text rows ``[1, n, hidden]`` fed one at a time."""
    steps = [model(inputs_embeds=row, past_key_values=cache).last_hidden_state for row in rows.split(1, dim=1)]
    return torch.cat(steps, 1)
