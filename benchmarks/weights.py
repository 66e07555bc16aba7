"""How large the weights of OmniGen2 are in memory, counted without having them.

    python -m benchmarks.weights

The parts are built at full size on torch's meta device, which has shapes and no values.
"""

import torch

from benchmarks.full_size import build

DTYPES = {"float32": 4, "bfloat16": 2}


def main() -> None:
    """Print parameters and gigabytes of each part and of the whole."""
    pipeline = build(False, torch.device("meta"), torch.bfloat16).pipeline
    parts = {
        "transformer": pipeline.transformer,
        "language model": pipeline.language.mllm,
        "autoencoder": pipeline.autoencoder.vae,
    }
    counts = {name: sum(value.numel() for value in part.parameters()) for name, part in parts.items()}
    counts["total"] = sum(counts.values())
    print(f"{'part':16}{'parameters':>15}" + "".join(f"{dtype:>14}" for dtype in DTYPES))
    for name, count in counts.items():
        sizes = "".join(f"{count * width / 1e9:>11.2f} GB" for width in DTYPES.values())
        print(f"{name:16}{count:>15,}{sizes}")


if __name__ == "__main__":
    main()
