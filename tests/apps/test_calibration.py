"""The expected calibration error, on answers that are easy to count."""

import pytest
import torch

from bilevel_apps.scoring.calibration import Calibration, calibration_error


def answers(confidence, right, n=10):
    """n answers between two classes, so many of them right."""
    probabilities = torch.tensor([[confidence, 1 - confidence]]).expand(n, 2)
    labels = (torch.arange(n) >= right).long()
    return probabilities, labels


@pytest.mark.parametrize(("confidence", "right", "error"), [(0.8, 8, 0.0), (0.9, 5, 0.4)])
def test_the_error_is_how_far_confidence_is_from_truth(confidence, right, error):
    assert calibration_error(*answers(confidence, right)) == pytest.approx(error, abs=1e-6)


def test_bins_do_not_cancel_and_parts_add_up():
    over, under = answers(0.95, 5), answers(0.55, 10)
    together = Calibration()
    for probabilities, labels in (over, under):
        together.add(probabilities, labels)
    assert together.error == pytest.approx((0.45 + 0.45) / 2, abs=1e-6)
    both = torch.stack([over[0], under[0]]), torch.stack([over[1], under[1]])
    assert calibration_error(*both) == pytest.approx(together.error)


def test_certainty_falls_into_the_last_bin():
    assert calibration_error(torch.tensor([[1.0, 0.0]]), torch.tensor([0])) == 0.0
