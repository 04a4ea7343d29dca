"""``pipeline("image-text-to-text")`` with a tiny model and a processor built here."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast, pipeline

import vtskip
from tests.tiny import FAMILIES, IMAGE_ID, VOCAB

PROMPT = "w7 <image> w5 w9 w11"
CUT = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False)
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<image> ' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def processor():
    """Words ``w0`` to ``w119`` are the ids of the tiny models; the image is 32 pixels wide, 4 x 4 patches."""
    names = {f"w{i}" if i != IMAGE_ID else "<image>": i for i in range(VOCAB)}
    words = Tokenizer(WordLevel(names, unk_token="w3"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2", unk_token="w3", padding_side="left"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size=size, crop_size=size)
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))


def words(answers) -> list[str]:
    return " ".join(answer["generated_text"] for answer in answers).split()


@pytest.mark.parametrize("spec", [{"name": "mod", "keep": 0.3}, {"name": "shortv", "layers": [0, 1, 3]}, "fastv"])
def test_pipeline_equals_generate(processor, image, spec):
    model = FAMILIES["llava-llama"].model(torch.float32)
    pipe = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    dense = words(pipe(images=image, text=PROMPT, return_full_text=False, generate_kwargs=dict(CUT)))
    inputs = processor(images=image, text=PROMPT, return_tensors="pt")
    assert int((inputs["input_ids"] == IMAGE_ID).sum()) == 16
    with vtskip.attach(model, spec) as handle:
        skipped = words(pipe(images=image, text=PROMPT, return_full_text=False, generate_kwargs=dict(CUT)))
        assert min(handle.report().kept_vision) < 0.6 and handle.last_rows.sizes == ((16,),)
        ids = model.generate(**inputs, **CUT)[0, inputs["input_ids"].shape[1] :]
        assert skipped == processor.decode(ids, skip_special_tokens=True).split() and len(skipped) >= 5
        message = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "w5"}]}]
        handle.reset()
        pipe(text=message, return_full_text=False, generate_kwargs=dict(CUT))
        assert handle.last_rows.sizes == ((16,),) and min(handle.report().kept_vision) < 0.6
    assert words(pipe(images=image, text=PROMPT, return_full_text=False, generate_kwargs=dict(CUT))) == dense
