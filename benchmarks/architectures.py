"""Networks of many families, with random weights: does lowbit bring them in, and does W8A8 still agree with them?

    python -m benchmarks.architectures [NAME …]

needs `torchvision`, `timm` and `transformers`. Every row runs in a process of its own. `dB` is the signal-to-noise
ratio of the quantized model's first output against the module itself (eager PyTorch) on held-out random inputs, `top-1`
how often both pick the same class; a family passes with 20 dB or the same class everywhere. Random weights are a test of
operators and interfaces, not of accuracy.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

IMAGE = (3, 64, 64)


_LIBRARIES: list[Any] = []


def _declare_selection() -> None:
    """Declare two operators that torchvision wants to see when it is imported; its own may be built for CUDA only."""
    import torch

    if _LIBRARIES or importlib.util.find_spec("torchvision") is None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)


def _vision(name: str, **options: Any) -> Any:
    import torchvision

    return torchvision.models.get_model(name, weights=None, **options)


def _timm(name: str, **options: Any) -> Any:
    import timm

    return timm.create_model(name, pretrained=False, **options)


def _transformer(model: str, config: str, **options: Any) -> Any:
    import transformers

    settings = getattr(transformers, config)(**options)
    return getattr(transformers, model)(settings)


_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_TEXT = {**_SMALL, "vocab_size": 200, "max_position_embeddings": 64}

# name: (family, how it is made, size of the picture or "tokens", "decoder" …)
NETWORKS: dict[str, tuple[str, Callable[[], Any], Any]] = {
    "resnet18": ("residual CNN", lambda: _vision("resnet18"), IMAGE),
    "vgg11_bn": ("plain CNN", lambda: _vision("vgg11_bn", num_classes=50), IMAGE),
    "densenet121": ("dense CNN", lambda: _vision("densenet121"), IMAGE),
    "squeezenet1_1": ("fire modules", lambda: _vision("squeezenet1_1"), IMAGE),
    "googlenet": ("inception", lambda: _vision("googlenet", aux_logits=False, init_weights=False), IMAGE),
    "mobilenet_v2": ("inverted residuals", lambda: _vision("mobilenet_v2"), IMAGE),
    "mobilenet_v3_small": ("hard swish, SE", lambda: _vision("mobilenet_v3_small"), IMAGE),
    "shufflenet_v2_x0_5": ("channel shuffle", lambda: _vision("shufflenet_v2_x0_5"), IMAGE),
    "mnasnet0_5": ("searched CNN", lambda: _vision("mnasnet0_5"), IMAGE),
    "efficientnet_b0": ("compound scaling", lambda: _vision("efficientnet_b0"), IMAGE),
    "regnet_y_400mf": ("design space", lambda: _vision("regnet_y_400mf"), IMAGE),
    "convnext_tiny": ("modern CNN, LayerNorm", lambda: _vision("convnext_tiny"), IMAGE),
    "vit_b_16": ("vision transformer", lambda: _vision("vit_b_16", image_size=64), IMAGE),
    "swin_t": ("shifted windows", lambda: _vision("swin_t"), IMAGE),
    "fcn_resnet50": ("segmentation", lambda: _vision("fcn_resnet50", weights_backbone=None, num_classes=5), IMAGE),
    "lraspp_mobilenet_v3_large": (
        "light segmentation",
        lambda: _vision("lraspp_mobilenet_v3_large", weights_backbone=None, num_classes=5),
        IMAGE,
    ),
    "r3d_18": ("video, 3-D CNN", lambda: _vision("r3d_18", num_classes=10), (3, 4, 32, 32)),
    "mixer_s32_224": ("MLP mixer", lambda: _timm("mixer_s32_224", img_size=64), IMAGE),
    "deit_tiny_patch16_224": ("distilled transformer", lambda: _timm("deit_tiny_patch16_224", img_size=64), IMAGE),
    "repvgg_a0": ("re-parameterized CNN", lambda: _timm("repvgg_a0"), IMAGE),
    "ghostnet_100": ("ghost modules", lambda: _timm("ghostnet_100"), IMAGE),
    "hrnet_w18_small": ("high resolution", lambda: _timm("hrnet_w18_small"), IMAGE),
    "poolformer_s12": ("pooling as attention", lambda: _timm("poolformer_s12"), IMAGE),
    "fastvit_t8": ("hybrid", lambda: _timm("fastvit_t8"), IMAGE),
    "edgenext_xx_small": ("hybrid, cross-covariance", lambda: _timm("edgenext_xx_small"), IMAGE),
    "bert": ("encoder", lambda: _transformer("BertModel", "BertConfig", **_TEXT), "tokens"),
    "distilbert": (
        "distilled encoder",
        lambda: _transformer(
            "DistilBertModel", "DistilBertConfig", vocab_size=200, dim=64, n_layers=2, n_heads=4, hidden_dim=128
        ),
        "tokens",
    ),
    "gpt2": (
        "decoder",
        lambda: _transformer("GPT2LMHeadModel", "GPT2Config", vocab_size=200, n_embd=64, n_layer=2, n_head=4),
        "decoder",
    ),
    "llama": (
        "decoder, rotary positions",
        lambda: _transformer("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, **_TEXT),
        "decoder",
    ),
    "t5": (
        "encoder of a pair",
        lambda: _transformer(
            "T5EncoderModel", "T5Config", vocab_size=200, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4
        ),
        "tokens",
    ),
    "whisper_encoder": (
        "speech encoder",
        lambda: (
            _transformer(
                "WhisperModel",
                "WhisperConfig",
                vocab_size=200,
                d_model=64,
                encoder_layers=2,
                decoder_layers=1,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=128,
                decoder_ffn_dim=128,
                max_source_positions=50,
                num_mel_bins=40,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
            ).encoder
        ),
        (40, 100),
    ),
    "wav2vec2": (
        "raw audio",
        lambda: _transformer(
            "Wav2Vec2Model", "Wav2Vec2Config", **_SMALL, conv_dim=(32,) * 7, num_conv_pos_embedding_groups=4
        ),
        (4000,),
    ),
    "clip_vision": (
        "picture half of a pair",
        lambda: _transformer("CLIPVisionModel", "CLIPVisionConfig", image_size=64, patch_size=16, **_SMALL),
        IMAGE,
    ),
    "segformer": (
        "segmentation transformer",
        lambda: _transformer("SegformerForSemanticSegmentation", "SegformerConfig", num_labels=5),
        IMAGE,
    ),
    "lstm": ("recurrent", lambda: _recurrent("LSTM"), (12, 16)),
    "gru": ("recurrent", lambda: _recurrent("GRU"), (12, 16)),
}


def _recurrent(kind: str) -> Any:
    import torch

    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = getattr(torch.nn, kind)(16, 32, num_layers=2, batch_first=True)
            self.head = torch.nn.Linear(32, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.cells(x)[0][:, -1])

    return Recurrent()


def measure(name: str) -> dict[str, Any]:
    """Return one row: what failed and why, or how well the quantized model agrees with the module."""
    import numpy as np
    import torch
    from torch.utils import _pytree as pytree

    import lowbit
    from lowbit.graph import serialize
    from lowbit.runtime import open_session

    torch.manual_seed(0)
    torch.set_num_threads(1)
    _declare_selection()
    _, make, inputs = NETWORKS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = make()
    generator = torch.Generator().manual_seed(1)
    # Statistics of normalizations as after training: with their initial ones, deep random networks overflow or vanish.
    samples = [_sample(inputs, generator) for _ in range(24)]
    module.train()
    with torch.no_grad():
        for sample in samples[:4]:
            if any("BatchNorm" in type(part).__name__ for part in module.modules()):
                module(**_stacked([sample, *samples[4:8]]))
    module.eval()
    started = time.perf_counter()
    imported = lowbit.import_model(module, samples[0] if isinstance(inputs, str) else tuple(samples[0].values()))
    seconds = time.perf_counter() - started
    names = [str(value.name) for value in imported.model.graph.inputs]
    feeds = [dict(zip(names, _tensors(sample), strict=True)) for sample in samples]
    result = lowbit.quantize(imported.model, data=feeds[:16], test_data=feeds[16:], method="static", measure_seconds=0)
    session = open_session(serialize(result.model), threads=1)
    signal = noise = same = count = 0.0
    with torch.no_grad():
        for sample, feed in zip(samples[16:], feeds[16:], strict=True):
            expected = pytree.tree_leaves(module(**sample) if isinstance(inputs, str) else module(*sample.values()))[0]
            wanted, found = expected.numpy().astype(np.float64), session.run(feed)[0].astype(np.float64)
            signal, noise = signal + float((wanted**2).sum()), noise + float(((wanted - found) ** 2).sum())
            axis = 1 if wanted.ndim == 4 else -1
            same += float((wanted.argmax(axis) == found.argmax(axis)).mean())
            count += 1
    batch = next(
        (dim for value in imported.model.graph.inputs for dim in value.shape if not isinstance(dim, int)), None
    )
    return {
        "db": 10 * float(np.log10(signal / noise)) if noise else 999.0,
        "top1": same / count,
        "integer": sum(site.execution in {"static", "dynamic"} for site in result.plan.sites),
        "sites": len(result.plan.sites),
        "open": batch is not None,
        "seconds": seconds,
        "notes": list(imported.notes),
    }


def _sample(inputs: Any, generator: Any) -> dict[str, Any]:
    import torch

    if inputs in {"tokens", "decoder"}:
        ids = torch.randint(3, 200, (1, 16), generator=generator)
        found: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return {**found, "use_cache": False} if inputs == "decoder" else found
    return {"x": torch.randn(1, *inputs, generator=generator)}


def _stacked(samples: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    joined = {key: torch.cat([sample[key] for sample in samples]) for key in samples[0]}
    return {"x": joined["x"]} if "x" in joined else joined


def _tensors(sample: dict[str, Any]) -> list[Any]:
    import torch
    from torch.utils import _pytree as pytree

    return [leaf.numpy() for leaf in pytree.tree_leaves(sample) if isinstance(leaf, torch.Tensor)]


def main(names: list[str]) -> int:
    """Print the table and return how many networks failed."""
    for package in ("torchvision", "timm", "transformers"):
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: pip install torchvision timm transformers")
            return 1
    failed = 0
    print(f"{'network':32} {'family':26} {'import':>7} {'batch':>6} {'integer':>9} {'dB':>6} {'top-1':>6}  verdict")
    for name in names or list(NETWORKS):
        code = (
            "import json, sys; from benchmarks.architectures import measure; "
            "print('\\nROW' + json.dumps(measure(sys.argv[1])))"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, name], capture_output=True, text=True, check=False
        )
        rows = [line[3:] for line in done.stdout.splitlines() if line.startswith("ROW")]
        family = NETWORKS[name][0]
        if not rows:
            cause = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no output")
            print(f"{name:32} {family:26} {'':38}  FAILED: {cause[:400]}", flush=True)
            failed += 1
            continue
        row = json.loads(rows[-1])
        good = row["db"] >= 20 or row["top1"] == 1
        failed += not good
        print(
            f"{name:32} {family:26} {row['seconds']:6.1f}s {'open' if row['open'] else 'fixed':>6} "
            f"{row['integer']:4}/{row['sites']:4} {row['db']:6.1f} {row['top1']:6.2f}  "
            f"{'ok' if good else 'TOO FAR'}{''.join('; ' + note for note in row['notes'])[:300]}",
            flush=True,
        )
    print(f"{len(names or NETWORKS) - failed} of {len(names or NETWORKS)} agree")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
