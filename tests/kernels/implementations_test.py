"""Choosing an implementation by platform, or by name."""

import pytest

from sparse_prefix_jax.kernels.implementations import IMPLEMENTATIONS, choose


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_name_is_taken_as_it_is(name):
  assert choose("causal_conv1d", name) == name


def test_none_chooses_one_that_exists():
  assert choose("causal_conv1d", None) in IMPLEMENTATIONS


@pytest.mark.parametrize("name", ["nonsense", "", "XLA"])
def test_an_unknown_name_is_refused_with_what_is_allowed(name):
  with pytest.raises(ValueError, match=f"implementation='{name}'") as refused:
    choose("causal_conv1d", name)
  for word in ("causal_conv1d", "None", *IMPLEMENTATIONS):
    assert word in str(refused.value)
