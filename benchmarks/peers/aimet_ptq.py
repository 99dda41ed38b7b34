"""Quantize with AIMET: its simulation, what it learns in it, and the Q/DQ model that it exports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers.quantizer import parser, run

if TYPE_CHECKING:
    import argparse

    from benchmarks.peers.feeds import FeedFolder


def quantize(arguments: argparse.Namespace, feeds: FeedFolder) -> dict[str, Any]:
    """Quantize per channel; with `--sequential-mse` and `--adaround`, weights are tuned before."""
    import aimet_onnx  # type: ignore[import-not-found]  # lives in an interpreter of its own
    import onnx
    import torch
    from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight  # type: ignore[import-not-found]

    torch.manual_seed(0)
    samples = list(feeds)
    model = onnx.load(arguments.model)
    note = ""
    try:
        fold_all_batch_norms_to_weight(model)
    except Exception as error:  # noqa: BLE001 - what it does without is still measured
        note = f"BatchNorms not folded ({type(error).__name__}: {error})".splitlines()[0][:120]
    simulation = aimet_onnx.QuantizationSimModel(
        model,
        param_type=arguments.weights,
        activation_type="float32" if arguments.activations == "none" else "int8",
        quant_scheme=arguments.scheme,
        config_file="default",
    )
    if arguments.sequential_mse:
        aimet_onnx.apply_seq_mse(simulation, samples)
    if arguments.adaround:
        aimet_onnx.apply_adaround(simulation, samples, arguments.adaround)
    simulation.compute_encodings(samples)
    onnx.save(simulation.to_onnx_qdq(prequantize_constants=True), arguments.output)
    return {"preparation": note}


def main() -> None:
    """Run the command line."""
    arguments = parser(__doc__)
    arguments.add_argument("--weights", choices=("int8", "int4"), default="int8")
    arguments.add_argument("--activations", choices=("uint8", "none"), default="uint8")
    arguments.add_argument("--scheme", choices=("min_max", "tf_enhanced"), default="min_max")
    arguments.add_argument("--sequential-mse", action="store_true")
    arguments.add_argument("--adaround", type=int, default=0, metavar="ITERATIONS", help="of every layer; 0: without")
    run(quantize, arguments.parse_args())


if __name__ == "__main__":
    main()
