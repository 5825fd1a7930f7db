"""SIGReg: pull embeddings towards a Gaussian, so that they cannot collapse (LeJEPA, arXiv 2511.08544, section 4)."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vjepa.counter_rng import generator
from vjepa.objectives.precision import at_least_fp32

T_MAX: Final = 5.0  # the weight of the integral is under 4e-6 beyond


def directions(seed: int, step: int, num: int, width: int) -> Tensor:
    """Draw fp32 [S, D]: S = `num` unit vectors of D = `width`, uniform on the sphere.

    They are a function of (seed, step), the same on every rank and resume.
    """
    drawn = generator(seed, "sigreg", step).standard_normal((num, width), dtype=np.float32)
    return functional.normalize(torch.from_numpy(drawn), dim=1)


def sigreg(embeddings: Tensor, directions: Tensor, knots: int) -> Tensor:
    """Average the statistic of Epps and Pulley (1983) over views and directions: [V, B, D] and [S, D] -> scalar.

    The embeddings are of V views of B clips. The statistic is B * integral of |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2)
    dt, phi the characteristic function of B embeddings along a direction; by the trapezoid rule over `knots` points of
    [0, 5], doubled, for the integrand is even. Its mean for Gaussian samples is 1.06 whatever B. Clips meet in phi
    alone, a mean over them: over several ranks it is the mean of theirs. In fp32 whatever autocast says.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = at_least_fp32(embeddings)
        t = torch.linspace(0, T_MAX, knots, dtype=embeddings.dtype, device=embeddings.device)
        gaussian = (-t.square() / 2).exp()
        phases = (embeddings @ directions.to(embeddings).mT).unsqueeze(-1) * t  # [V, B, S, knots]
        real, imaginary = phases.cos().mean(dim=-3), phases.sin().mean(dim=-3)
        distance = (real - gaussian).square() + imaginary.square()
        return 2 * embeddings.shape[-2] * torch.trapezoid(distance * gaussian, t).mean()
