"""Networks of the transformers library, as its users have them: brought in, quantized by default, and still the same.

Their weights are random, and made to count by `benchmarks.architectures.weights`; `python -m benchmarks.architectures`
has many more.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.architectures.weights import settle
from torch import nn

import lowbit
from lowbit.graph import serialize
from lowbit.runtime import open_session

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

ENOUGH_DB = 20.0
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = {**SIZES, "vocab_size": 99, "max_position_embeddings": 32}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "BertModel": ("BertConfig", TEXT, "text"),
    "LlamaForCausalLM": ("LlamaConfig", {**TEXT, "num_key_value_heads": 1}, "decoder"),
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 99, "n_embd": 32, "n_layer": 1, "n_head": 2}, "decoder"),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 99, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2},
        "pair",
    ),
    "ResNetForImageClassification": (
        "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
        "picture",
    ),
    "MobileNetV2ForImageClassification": ("MobileNetV2Config", {"depth_multiplier": 0.25, "image_size": 32}, "picture"),
    "ConvNextForImageClassification": (
        "ConvNextConfig",
        {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
        "picture",
    ),
    "SwinForImageClassification": (
        "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 4},
        "picture",
    ),
    "SegformerForSemanticSegmentation": (
        "SegformerConfig",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [3, 3],
            "strides": [2, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 16,
            "num_labels": 3,
        },
        "picture",
    ),
    "Wav2Vec2Model": (
        "Wav2Vec2Config",
        {
            **SIZES,
            "conv_dim": (16, 16),
            "conv_stride": (5, 4),
            "conv_kernel": (10, 4),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 2,
        },
        "sound",
    ),
}
QUICK = {"BertModel", "LlamaForCausalLM", "ResNetForImageClassification", "ConvNextForImageClassification"}


def sample(kind: str, generator: torch.Generator, count: int = 1) -> dict[str, Any]:
    if kind == "picture":
        coarse = torch.randn(count, 3, 8, 8, generator=generator)
        return {"pixel_values": nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")}
    if kind == "sound":
        return {"input_values": torch.randn(count, 800, generator=generator)}
    ids = torch.randint(3, 99, (count, 12), generator=generator)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "pair":
        found["decoder_input_ids"] = torch.randint(3, 99, (count, 5), generator=generator)
    return found if kind == "text" else {**found, "use_cache": False}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
@pytest.mark.filterwarnings("ignore")  # what the library says of its own future
def test_quantized_by_default_it_agrees_with_the_module(name: str) -> None:
    config, options, kind = MODELS[name]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    module = getattr(transformers, name)(getattr(transformers, config)(**options))
    settle(module, lambda: module(**sample(kind, generator, 8)))
    samples = [sample(kind, generator) for _ in range(24)]

    feeds = [{key: value.numpy() for key, value in one.items() if torch.is_tensor(value)} for one in samples]
    result = lowbit.quantize(
        module, feeds[:16], test_data=feeds[16:], example_inputs=samples[0], method="static", measure_seconds=0
    )
    assert {"batch"} == {str(value.shape[0]) for value in result.model.graph.inputs}
    assert sum(site.execution == "static" for site in result.plan.sites) >= 4
    session = open_session(serialize(result.model), threads=1)
    signal = noise = 0.0
    with torch.no_grad():
        for one, feed in zip(samples[16:], feeds[16:], strict=True):
            wanted = next(iter(module(**one).values())).numpy().astype(np.float64)
            signal += float((wanted**2).sum())
            noise += float(((session.run(feed)[0] - wanted) ** 2).sum())
    assert 10 * np.log10(signal / noise) > ENOUGH_DB
