"""A tiny LLaVA-OneVision with everything that lies beside a model on the Hub: processor, tokenizer, chat template."""

from pathlib import Path

import torch
import transformers as hf

from tests.tiny_families import IMAGE_ID, VIDEO_ID, VOCAB, onevision

WORDS = (
    "user assistant system what is the action in the video ? cut the bread open lid C looks around narrate 1 2 3 . : ,"
)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% elif part['type'] == 'video' %}<video> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)


def tokenizer() -> hf.PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<s>", "</s>", "<unk>", *dict.fromkeys(WORDS.lower().split())]
    words += [f"w{i}" for i in range(len(words), VOCAB)]
    words[IMAGE_ID], words[VIDEO_ID] = "<image>", "<video>"
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )


def save(folder: Path) -> Path:
    """Model and processor, as ``from_pretrained`` reads them."""
    torch.manual_seed(0)
    model = onevision().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)  # different questions get different answers
    model.save_pretrained(folder)
    side = {"height": 48, "width": 48}
    hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=[[48, 48], [48, 96]]),
        tokenizer=tokenizer(),
        video_processor=hf.LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder
