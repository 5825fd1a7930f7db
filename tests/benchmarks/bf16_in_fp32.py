"""Run a module in bf16 on a CPU without bf16 units: the numbers of such units, at nearly the speed of fp32.

python tests/benchmarks/bf16_in_fp32.py vjepa.train demo run.precision=bf16

AVX512-BF16 and AMX multiply bf16 values exactly, sum in fp32, and round the sum to bf16. Here the factors, which are
bf16 by then, are multiplied as fp32 and the result is rounded: the same but for the order of sums. torch's own loops
for other CPUs are 40 to 90 times slower. Everything else that a run computes in bf16 is torch's own on any CPU.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from typing import Final

import torch

# The `out` overloads have kernels of their own, which stay as they are.
_PRODUCTS: Final[dict[str, Callable[..., torch.Tensor]]] = {
    "mm": torch.ops.aten.mm.out,
    "bmm": torch.ops.aten.bmm.out,
    "addmm": torch.ops.aten.addmm.out,
    "baddbmm": torch.ops.aten.baddbmm.out,
}


def _rounded(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def computed(*factors: torch.Tensor, **scales: float) -> torch.Tensor:
        low = factors[0].dtype is torch.bfloat16
        wide = [factor.float() for factor in factors] if low else factors
        result = product(*wide, **scales, out=wide[0].new_empty(0))
        return result.bfloat16() if low else result

    return computed


def install() -> torch.library.Library:
    """Put the products of matrices on the CPU in place of torch's, for as long as the library that it gives lives."""
    library = torch.library.Library("aten", "IMPL")
    for name, product in _PRODUCTS.items():
        library.impl(name, _rounded(product), "CPU", allow_override=True)
    return library


if __name__ == "__main__":
    del sys.argv[0]
    _library = install()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
