"""A tiny random StreamingLlava with a character template, for tests of sessions and scoring."""

import torch

from tests.helpers_stream import char_template
from vtskip.models.streaming_llava import StreamingLlava, StreamingLlavaConfig
from vtskip.streaming.model import LlavaStream

WORDS = "You see it. C cuts looks opens the lid What is this?"
VISION = {"embed_dim": 16, "image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}


def tiny(dtype=torch.float64, layers=4, pool=(2, 2), seed=0):
    """(model in eval mode, template): 1 + h*w tokens per frame, ``layers`` Llama layers of width 32."""
    frame_tokens = 1 + pool[0] * pool[1]
    template = char_template(WORDS, frame_tokens)
    text = {
        "model_type": "llama",
        "vocab_size": len(template.tokenizer.names),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    }
    ids = {name: getattr(template, name) for name in ("frame_id", "interval_id", "close_id", "eos_id", "bos_id")}
    torch.manual_seed(seed)
    config = StreamingLlavaConfig(vision=VISION, pool=list(pool), text_config=text, system_prompt="You see it.", **ids)
    model = StreamingLlava(config).to(dtype).eval()
    with torch.no_grad():  # far from the all-alike start, so that decisions differ from frame to frame
        model.get_output_embeddings().weight.mul_(30)
    return model, template


def video(frames: int, seed=0):
    """uint8 [N, 32, 32, 3] noise of another brightness in every frame."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(frames, 32, 32, 3, generator=generator) * torch.rand(frames, 1, 1, 3, generator=generator)
    return (255 * noise).to(torch.uint8)


class Biased(LlavaStream):
    """A random model hardly ever says the interval token: its logit is raised so that decisions are mixed."""

    bias = 7.5

    def step(self, ids, features, cache, rows):
        logits = super().step(ids, features, cache, rows).clone()
        logits[:, self.model.config.interval_id] += self.bias
        return logits


METHODS = [
    "dense",
    {"name": "mod", "keep": 0.4},
    {"name": "mod", "keep": 0.4, "schedule": {"kind": "constant", "first": 1}},
    {"name": "shortv", "layers": [1, 2]},
    {"name": "skip_ffn", "keep": 0.4},
    {"name": "random", "keep": 0.4},
    {"name": "uniform", "keep": 0.4},
    [{"name": "mod", "keep": 0.6}, {"name": "skip_ffn", "keep": 0.4}],
]
