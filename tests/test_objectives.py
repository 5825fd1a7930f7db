from __future__ import annotations

import pytest
import torch

from vjepa.objectives.prediction import DISTANCES, prediction_loss
from vjepa.objectives.vicreg import covariance, variance

pytestmark = pytest.mark.fast


def test_distances_against_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    predictions, targets = (2 * torch.randn(3, 5, 7, generator=generator) for _ in range(2))
    error = (predictions - targets).abs()
    twins = {"l1": error, "mse": error**2, "smooth_l1": torch.where(error < 1, error**2 / 2, error - 0.5)}
    assert twins.keys() == DISTANCES.keys()
    for name, twin in twins.items():
        torch.testing.assert_close(prediction_loss(name, predictions, targets), twin.mean())
        assert prediction_loss(name, targets.bfloat16(), targets.bfloat16()).dtype == torch.float32


def test_variance_is_a_hinge_at_one() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 8, generator=generator)
    assert variance(3 * features).item() == 0
    assert variance(0.25 * features).item() == pytest.approx(0.75, abs=0.02)
    assert variance(torch.ones(16, 8)).item() == pytest.approx(0.99, abs=0.001)  # collapsed: 1 - sqrt(1e-4)


def test_covariance_against_a_loop() -> None:
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).double()
    centred = features - features.mean(0)
    total = 0.0
    for i in range(6):
        for j in range(6):
            if i != j:
                total += ((centred[:, i] * centred[:, j]).sum().item() / 19) ** 2
    assert covariance(features).item() == pytest.approx(total / 6, rel=1e-5)
