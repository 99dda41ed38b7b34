"""Networks of many families, small enough for a processor: how each is made, and what it takes.

Weights are random and sizes small: what is tested is operators and interfaces. Transformers have two layers of 64
channels; networks for pictures are whole, on pictures of 64².
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NETWORKS", "Network", "missing_packages"]

Takes = tuple[int, ...] | Literal["tokens", "decoder", "pair"]
"""The shape of one real-valued input without its batch; tokens and a mask; the same for a decoder, without its cache;
tokens for an encoder and for a decoder."""

IMAGE = (3, 64, 64)


@dataclass(frozen=True, slots=True)
class Network:
    """One architecture.

    Attributes:
        package: Where it comes from.
        family: What it stands for.
        make: Returns the module, with random weights.
        takes: Its inputs.
    """

    package: str
    family: str
    make: Callable[[], Any]
    takes: Takes = IMAGE


def missing_packages() -> list[str]:
    """Return the packages that networks come from and that are not installed."""
    return [name for name in ("torchvision", "timm", "transformers") if importlib.util.find_spec(name) is None]


_DECLARED: list[Any] = []


def _declare_selection() -> None:
    """Declare two operators that torchvision wants to see when it is imported; its own may be built for CUDA only."""
    import torch

    if _DECLARED or importlib.util.find_spec("torchvision") is None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)


def _vision(family: str, name: str, takes: Takes = IMAGE, **options: Any) -> Network:
    def make() -> Any:
        _declare_selection()
        import torchvision

        return torchvision.models.get_model(name, weights=None, **options)

    return Network("torchvision", family, make, takes)


def _pyramid() -> Any:
    _declare_selection()
    import torch
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    return resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=torch.nn.BatchNorm2d)


def _plain() -> Any:
    _declare_selection()
    import torch
    import torchvision

    module = torchvision.models.get_model("vgg11_bn", weights=None)
    module.classifier = torch.nn.Linear(512 * 7 * 7, 50)
    return module


def _vision_transformer() -> Any:
    _declare_selection()
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=64, patch_size=16, num_layers=4, num_heads=4, hidden_dim=128, mlp_dim=256)


def _timm(family: str, name: str, **options: Any) -> Network:
    def make() -> Any:
        _declare_selection()
        import timm

        return timm.create_model(name, pretrained=False, **options)

    return Network("timm", family, make)


def _isotropic() -> Any:
    _declare_selection()
    from timm.models.convmixer import ConvMixer

    return ConvMixer(dim=96, depth=6, kernel_size=7, patch_size=7)


def _transformer(family: str, model: str, config: str, takes: Takes, part: str = "", **options: Any) -> Network:
    def make() -> Any:
        _declare_selection()
        import transformers

        module = getattr(transformers, model)(getattr(transformers, config)(**options))
        return getattr(module, part) if part else module

    return Network("transformers", family, make, takes)


def _recurrent(kind: str) -> Network:
    def make() -> Any:
        import torch

        class Recurrent(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.cells = getattr(torch.nn, kind)(16, 32, num_layers=2, batch_first=True)
                self.head = torch.nn.Linear(32, 10)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.head(self.cells(x)[0][:, -1])

        return Recurrent()

    return Network("torch", "recurrent", make, (12, 16))


_WINDOWS = {"img_size": 64, "window_size": 4, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)}
_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_TEXT = {**_SMALL, "vocab_size": 200, "max_position_embeddings": 64}
_WHISPER = {
    "vocab_size": 200,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_source_positions": 50,
    "num_mel_bins": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_PAIR = {"vocab_size": 200, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
_AUDIO = {**_SMALL, "conv_dim": (32,) * 7, "num_conv_pos_embedding_groups": 4}

NETWORKS: dict[str, Network] = {
    "resnet18": _vision("residual CNN", "resnet18"),
    "vgg11_bn": Network("torchvision", "plain CNN", _plain),
    "densenet121": _vision("dense CNN", "densenet121"),
    "squeezenet1_1": _vision("fire modules", "squeezenet1_1"),
    "googlenet": _vision("inception", "googlenet", aux_logits=False, init_weights=False),
    "mobilenet_v2": _vision("inverted residuals", "mobilenet_v2"),
    "mobilenet_v3_small": _vision("hard swish, squeeze and excitation", "mobilenet_v3_small"),
    "shufflenet_v2_x0_5": _vision("channel shuffle", "shufflenet_v2_x0_5"),
    "mnasnet0_5": _vision("searched CNN", "mnasnet0_5"),
    "efficientnet_b0": _vision("compound scaling", "efficientnet_b0"),
    "regnet_y_400mf": _vision("design space", "regnet_y_400mf"),
    "vit": Network("torchvision", "vision transformer", _vision_transformer),
    "deeplabv3_mobilenet": _vision(
        "segmentation, dilated pyramid", "deeplabv3_mobilenet_v3_large", weights_backbone=None, num_classes=5
    ),
    "lraspp_mobilenet": _vision(
        "light segmentation", "lraspp_mobilenet_v3_large", num_classes=5, weights_backbone=None
    ),
    "resnet18_fpn": Network("torchvision", "detection backbone, feature pyramid", _pyramid),
    "r3d_18": _vision("video, 3-D CNN", "r3d_18", (3, 4, 32, 32), num_classes=10),
    "mixer_s32_224": _timm("MLP mixer", "mixer_s32_224", img_size=64),
    "gmlp_ti16_224": _timm("gated MLP", "gmlp_ti16_224", img_size=64),
    "deit_tiny_patch16_224": _timm("distilled transformer", "deit_tiny_patch16_224", img_size=64),
    "beit": _timm("relative positions", "beit_base_patch16_224", img_size=64, embed_dim=96, depth=4, num_heads=4),
    "swin": _timm("shifted windows", "swin_tiny_patch4_window7_224", **_WINDOWS),
    "swin_v2": _timm("shifted windows, cosine attention", "swinv2_tiny_window8_256", **_WINDOWS),
    "coatnet_pico": _timm("convolutions, then attention", "coatnet_pico_rw_224", img_size=64),
    "convnext_atto": _timm("CNN with LayerNorm", "convnext_atto"),
    "xcit_nano_12_p16_224": _timm("cross-covariance attention", "xcit_nano_12_p16_224", img_size=64),
    "pvt_v2_b0": _timm("pyramid transformer", "pvt_v2_b0"),
    "levit_128s": _timm("transformer with BatchNorm", "levit_128s", img_size=64),
    "mobilevit_xxs": _timm("mobile transformer", "mobilevit_xxs"),
    "efficientformerv2_s0": _timm("hybrid", "efficientformerv2_s0", img_size=64),
    "convmixer": Network("timm", "isotropic CNN", _isotropic),
    "repvgg_a0": _timm("re-parameterized CNN", "repvgg_a0"),
    "mobileone_s0": _timm("re-parameterized depthwise CNN", "mobileone_s0"),
    "ghostnet_100": _timm("ghost modules", "ghostnet_100"),
    "hrnet_w18_small": _timm("high resolution", "hrnet_w18_small"),
    "eca_nfnet_l0": _timm("no normalization", "eca_nfnet_l0"),
    "poolformer_s12": _timm("pooling as attention", "poolformer_s12"),
    "fastvit_t8": _timm("hybrid, large kernels", "fastvit_t8"),
    "edgenext_xx_small": _timm("hybrid, split depthwise", "edgenext_xx_small"),
    "bert": _transformer("encoder", "BertModel", "BertConfig", "tokens", **_TEXT),
    "roberta": _transformer("encoder, positions from the mask", "RobertaModel", "RobertaConfig", "tokens", **_TEXT),
    "albert": _transformer(
        "encoder, shared layers", "AlbertModel", "AlbertConfig", "tokens", embedding_size=32, **_TEXT
    ),
    "deberta_v2": _transformer(
        "encoder, disentangled attention",
        "DebertaV2Model",
        "DebertaV2Config",
        "tokens",
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        **_TEXT,
    ),
    "distilbert": _transformer(
        "distilled encoder",
        "DistilBertModel",
        "DistilBertConfig",
        "tokens",
        vocab_size=200,
        dim=64,
        n_layers=2,
        n_heads=4,
        hidden_dim=128,
    ),
    "gpt2": _transformer(
        "decoder", "GPT2LMHeadModel", "GPT2Config", "decoder", vocab_size=200, n_embd=64, n_layer=2, n_head=4
    ),
    "opt": _transformer(
        "decoder, learned positions",
        "OPTForCausalLM",
        "OPTConfig",
        "decoder",
        vocab_size=200,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=128,
        word_embed_proj_dim=64,
        max_position_embeddings=64,
    ),
    "llama": _transformer(
        "decoder, rotary positions", "LlamaForCausalLM", "LlamaConfig", "decoder", num_key_value_heads=2, **_TEXT
    ),
    "qwen2": _transformer(
        "decoder, grouped queries", "Qwen2ForCausalLM", "Qwen2Config", "decoder", num_key_value_heads=2, **_TEXT
    ),
    "bloom": _transformer(
        "decoder, linear biases",
        "BloomForCausalLM",
        "BloomConfig",
        "decoder",
        vocab_size=200,
        hidden_size=64,
        n_layer=2,
        n_head=4,
    ),
    "t5_encoder": _transformer("encoder of a pair", "T5EncoderModel", "T5Config", "tokens", **_PAIR),
    "t5": _transformer("encoder and decoder", "T5ForConditionalGeneration", "T5Config", "pair", **_PAIR),
    "whisper_encoder": _transformer(
        "speech encoder", "WhisperModel", "WhisperConfig", (40, 100), "encoder", **_WHISPER
    ),
    "wav2vec2": _transformer("raw audio", "Wav2Vec2Model", "Wav2Vec2Config", (4000,), **_AUDIO),
    "audio_spectrogram": _transformer(
        "spectrogram transformer",
        "ASTForAudioClassification",
        "ASTConfig",
        (96, 32),
        num_mel_bins=32,
        max_length=96,
        **_SMALL,
    ),
    "clip_vision": _transformer(
        "picture half of a pair", "CLIPVisionModel", "CLIPVisionConfig", IMAGE, image_size=64, patch_size=16, **_SMALL
    ),
    "segformer": _transformer(
        "segmentation transformer", "SegformerForSemanticSegmentation", "SegformerConfig", IMAGE, num_labels=5
    ),
    "lstm": _recurrent("LSTM"),
    "gru": _recurrent("GRU"),
}
