"""The stored logits of the presets: bits where the numerics are the same."""

import numpy as np
import pytest

from sparse_prefix_jax.contract import differing_bits
from tests.models import preset_logits

# Another processor sums in another order, as bfloat16 rounds it.
CLOSE = {"float32": 2e-4, "bfloat16": 0.1}


# Presets with the layers of the smallest are with the slow tests, and bfloat16,
# in which families live.
REPEATED = "tiny_bfloat16", "demo", "qwen3_5_0_8b_group"


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow) if name in REPEATED else name
    for name in preset_logits.PRESETS
  ],
)
def test_logits_are_the_stored_ones(name):
  stored = np.load(preset_logits.PATH)
  found = preset_logits.logits(name)
  if str(stored["numerics"]) == preset_logits.numerics():
    assert differing_bits(found, stored[name]) == 0
  dtype = "bfloat16" if name.endswith("bfloat16") else "float32"
  limit = CLOSE[dtype] * max(1.0, np.abs(stored[name]).max() / 10)
  assert np.abs(found - stored[name]).max() <= limit
