"""Every layer that mixes tokens is called as the protocol says."""

import inspect

import pytest

from sparse_prefix_jax.layers import GatedAttention, GatedDeltaNet, Mixer


@pytest.mark.parametrize("layer", [GatedAttention, GatedDeltaNet])
@pytest.mark.parametrize("method", ["init_pools", "__call__", "step"])
def test_layers_have_the_signatures_of_the_protocol(layer, method):
  expected = inspect.signature(getattr(Mixer, method)).parameters
  parameters = inspect.signature(getattr(layer, method)).parameters
  assert list(parameters) == list(expected)
  for name, parameter in parameters.items():
    assert parameter.kind == expected[name].kind
