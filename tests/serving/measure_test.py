"""Seconds of prefill, measured and fitted."""

import numpy as np
import pytest

from sparse_prefix_jax.serving import measure
from tests.models_for_tests import small_model


def test_fit_recovers_coefficients():
  lengths = np.array([100.0, 200.0, 400.0, 800.0])
  fitted = measure._fit(lengths, 2e-3 * lengths + 1e-6 * lengths**2)
  np.testing.assert_allclose(fitted[:2], (2e-3, 1e-6), rtol=1e-9)


def test_fit_has_no_negative_coefficient():
  lengths = np.array([100.0, 200.0, 400.0])
  assert measure._fit(lengths, np.sqrt(lengths)).quadratic == 0
  assert measure._fit(lengths, lengths**3).linear == 0


def test_measured_cost_is_positive_and_grows():
  measured = measure.measure_prefill(small_model(), [32, 64, 128], repeats=1)
  assert measured.unit == "seconds"
  assert 0 < measured.at([64])[0] < measured.at([128])[0]


@pytest.mark.parametrize("lengths, repeats", [([64], 1), ([64, 128], 0)])
def test_too_little_to_measure_is_refused(lengths, repeats):
  with pytest.raises(ValueError, match="at least two lengths"):
    measure.measure_prefill(small_model(), lengths, repeats=repeats)
