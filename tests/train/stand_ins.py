"""Tiny models of the families that shipped configurations name, on disk with processor and chat template, and their data."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers as hf

TEXTS = [
    "What is shown here ?",
    "A red square .",
    "And now ?",
    "USER: ASSISTANT: user assistant system",
    "The circle is blue .",
]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
# LLaVA-1.5's words; it writes no eos behind a reply. The other one is Qwen's.
VICUNA = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "start": "<|vision_start|>",
    "end": "<|vision_end|>",
    "turn": "<|im_start|>",
    "over": "<|im_end|>",
}


def tokenizer(*special: str, texts: list[str] = TEXTS):
    from vtskip.data.tokenizer import build_word_tokenizer

    made = build_word_tokenizer(texts)
    if special:
        made.add_special_tokens({"additional_special_tokens": list(special)}, replace_extra_special_tokens=False)
    return made


def language_model(folder: Path, texts: list[str] = TEXTS, **sizes) -> Path:
    """A causal language model (Llama) with its tokenizer."""
    words = tokenizer(texts=texts)
    torch.manual_seed(0)
    hf.LlamaForCausalLM(hf.LlamaConfig(**{"vocab_size": len(words), **SIZES, **sizes})).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def llava(folder: Path, texts: list[str] = TEXTS, layers: int = 4) -> Path:
    """LLaVA-1.5: a CLIP tower of 32 pixels, 16 rows per image."""
    words = tokenizer("<image>", texts=texts)
    ids = {"pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    text = hf.LlamaConfig(vocab_size=len(words), **{**SIZES, "num_hidden_layers": layers}, **ids)
    image = words.convert_tokens_to_ids("<image>")
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, image_size=32),
        text_config=text,
        image_token_id=image,
        image_seq_length=16,
    )
    torch.manual_seed(0)
    hf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    pictures = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = hf.LlavaProcessor(
        pictures,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=VICUNA,
    )
    processor.save_pretrained(folder)
    return folder


def llava_next(folder: Path, texts: list[str] = TEXTS, layers: int = 4) -> Path:
    """LLaVA-NeXT: a whole view and tiles of 32 pixels."""
    words, grids = tokenizer("<image>", texts=texts), [[32, 64], [64, 32], [64, 64]]
    ids = {"pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, image_size=32),
        text_config=hf.LlamaConfig(vocab_size=len(words), **{**SIZES, "num_hidden_layers": layers}, **ids),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grids,
    )
    torch.manual_seed(0)
    hf.LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    pictures = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grids
    )
    processor = hf.LlavaNextProcessor(
        pictures,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=VICUNA,
    )
    processor.save_pretrained(folder)
    return folder


def qwen2_5_vl(folder: Path, texts: list[str] = TEXTS) -> Path:
    """Qwen2.5-VL: images of any size and videos, positions of three numbers."""
    words = tokenizer(*QWEN.values(), texts=texts)
    words.eos_token = QWEN["over"]
    at = {name: words.convert_tokens_to_ids(token) for name, token in QWEN.items()}
    vision = dict(
        depth=2,
        hidden_size=16,
        intermediate_size=24,
        num_heads=2,
        patch_size=4,
        window_size=16,
        fullatt_block_indexes=[1],
        out_hidden_size=32,
        in_channels=3,
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = hf.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config={**SIZES, "num_key_value_heads": 2, "vocab_size": len(words), "rope_parameters": rope},
        image_token_id=at["image"],
        video_token_id=at["video"],
        vision_start_token_id=at["start"],
        vision_end_token_id=at["end"],
    )
    torch.manual_seed(0)
    hf.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    size = {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 1024}}
    processor = hf.Qwen2_5_VLProcessor(
        hf.Qwen2VLImageProcessor(**size), words, hf.Qwen2VLVideoProcessor(**size), chat_template=CHATML
    )
    processor.save_pretrained(folder)
    return folder


def pictures(folder: Path) -> Path:
    """Two photographs of different shape and a clip of four seconds."""
    from PIL import Image

    from vtskip.data.synthetic.encode import write_video

    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for name, size in (("a.png", (40, 64)), ("b.png", (64, 48))):
        Image.fromarray(draw.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    write_video(folder / "c.mp4", draw.integers(0, 255, (40, 64, 64, 3), np.uint8), 10)
    return folder


def talk(uid: str, *texts: str, **files: object) -> dict:
    """A record of LLaVA's JSON."""
    names = ("human", "gpt")
    return {"id": uid, **files, "conversations": [{"from": names[i % 2], "value": t} for i, t in enumerate(texts)]}


def llava_json(folder: Path, videos: bool = False) -> Path:
    """Hand-made records in LLaVA's form: one image, several turns, text alone, two images in different turns."""
    pictures(folder)
    records = [
        talk("one", "<image>\nWhat is shown here ?", "A red square .", image="a.png"),
        talk(
            "turns",
            "<image>\nWhat is shown here ?",
            "The circle is blue .",
            "And now ?",
            "A red square .",
            image="b.png",
        ),
        talk("text", "And now ?", "The circle is blue ."),
        talk(
            "two",
            "<image>\nWhat is shown here ?",
            "A red square .",
            "<image>\nAnd now ?",
            "The circle .",
            image=["a.png", "b.png"],
        ),
    ]
    if videos:
        records.append(talk("clip", "<video>\nWhat is shown here ?", "A red square .", video="c.mp4"))
    (folder / "records.json").write_text(json.dumps(records))
    return folder
