"""How large the weights of OmniGen2 are in memory, counted without having them.

    python -m benchmarks.weights

The parts are built at full size on torch's meta device, which has shapes and no values.
"""

from benchmarks.shapes import parameters, parts

DTYPES = {"float32": 4, "bfloat16": 2}
NAMES = {"transformer": "transformer", "mllm": "language model", "vae": "autoencoder"}


def main() -> None:
    """Print parameters and gigabytes of each part and of the whole."""
    made = parts()
    counts = {name: parameters(made[folder]) for folder, name in NAMES.items()}
    counts["total"] = sum(counts.values())
    print(f"{'part':16}{'parameters':>15}" + "".join(f"{dtype:>14}" for dtype in DTYPES))
    for name, count in counts.items():
        sizes = "".join(f"{count * width / 1e9:>11.2f} GB" for width in DTYPES.values())
        print(f"{name:16}{count:>15,}{sizes}")


if __name__ == "__main__":
    main()
