"""How long counted work takes on GPUs, from assumed rates. Nothing here was measured.

Rates are what good kernels are taken to reach. Of the data sheet's peak, for products of bfloat16: 57 %
(H100, H200), 70 % (A800), 80 % (4090); of memory's bandwidth 90 %; of PCIe 5 or 4 with 16 lanes 80 %; flash
attention 2, with heads of 120 channels, 350, 190 and 140 TFLOP/s. Products of 8-bit floats are 1.88 times as
fast as those of bfloat16, as published for scaled rows on an H100 (FBGEMM, pull request 2766).
"""

from dataclasses import dataclass

from benchmarks.counting import Work

TERA, GIGA = 1e12, 1e9
LAUNCH = 5e-6
"""Seconds that the host takes for a kernel: below that the device waits for it."""
SYNC = 10e-6
"""Seconds that the device is idle when the host waits for a value of it."""


@dataclass(frozen=True)
class Machine:
    """Rates of a GPU: FLOP/s of products of matrices and of attention, bytes/s of memory and of its link."""

    name: str
    peak: float
    """FLOP/s of products of bfloat16, by the data sheet."""
    products: float
    attention: float
    memory: float
    link: float
    fp8_products: float = 0.0
    """Of products of 8-bit floats; 0 where there are none."""
    launch: float = LAUNCH
    """Seconds of the host for a kernel."""
    is_host: bool = False
    """Whether kernels run where they are launched, so that nothing is hidden behind anything."""

    def seconds(self, work: Work, in_fp8: int = 0) -> float:
        """Of work whose copies from the host are hidden behind it, as far as they are shorter.

        Products take the longer of computing them and of moving their matrices; `in_fp8` FLOP of them are of
        8-bit floats.
        """
        products = (work.product_flop - in_fp8) / self.products
        if in_fp8:
            products += in_fp8 / self.fp8_products
        device = (
            max(products, work.product_bytes / self.memory)
            + work.attention_flop / self.attention
            + work.elementwise_bytes / self.memory
        )
        host = self.launch * work.kernels
        if self.is_host:
            return device + host
        return max(device, host, work.copied_bytes / self.link) + SYNC * work.syncs


MACHINES = (
    Machine("H100", 989 * TERA, 560 * TERA, 350 * TERA, 3000 * GIGA, 50 * GIGA, 1050 * TERA),
    Machine("H200", 989 * TERA, 560 * TERA, 350 * TERA, 4300 * GIGA, 50 * GIGA, 1050 * TERA),
    Machine("A800", 312 * TERA, 218 * TERA, 190 * TERA, 1800 * GIGA, 25 * GIGA),
    Machine("4090", 165 * TERA, 132 * TERA, 140 * TERA, 900 * GIGA, 25 * GIGA, 248 * TERA),
)
