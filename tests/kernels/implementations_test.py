"""Choosing an implementation by device and shape, by name, or by config."""

import dataclasses
from typing import ClassVar
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from sparse_prefix_jax.kernels.implementations import (
  Config,
  Device,
  Implementation,
  current_device,
  dispatch,
  plain,
)
from tests.kernels.devices import HOPPER, traced_for


@dataclasses.dataclass(frozen=True)
class TileConfig(Config):
  name: ClassVar[str] = "tiles"
  platform: ClassVar[str | None] = "tpu"
  tile: int = 0


def width_refusal(device, config, x):
  return None if x % 8 == 0 else f"{x} is not a multiple of 8"


TILES = Implementation(
  config=TileConfig,
  run=lambda x, config: 100 * x + config.tile,
  refusal=width_refusal,
  heuristic=lambda device, x: TileConfig(tile=int(x) // 8),
)
CANDIDATES = (TILES, plain(lambda x: x * x))


def call(choice, x):
  return dispatch("double", choice, CANDIDATES, x)


def test_none_takes_the_first_that_fits():
  assert call(None, 8) == 64
  with traced_for("TPU v6 lite"):
    assert call(None, 8) == 801
    assert call(None, 9) == 81


def test_a_name_forces_one():
  with traced_for("TPU v6 lite"):
    assert call("xla", 8) == 64
    assert call("tiles", 16) == 1602


def test_a_config_overrides_the_heuristic():
  config = TileConfig(tile=7, interpret="any")
  assert call(config, 8) == 807


def test_what_does_not_fit_is_refused_with_the_reason_of_each():
  with pytest.raises(ValueError, match="'tiles' of double") as refused:
    call("tiles", 8)
  assert "tiles: needs a tpu, and this is a cpu" in str(refused.value)
  assert "xla: fits" in str(refused.value)
  with (
    traced_for("TPU v6 lite"),
    pytest.raises(ValueError, match="multiple of 8"),
  ):
    call(TileConfig(tile=1), 9)


@dataclasses.dataclass(frozen=True)
class OtherConfig(Config):
  name: ClassVar[str] = "tiles"


def test_a_config_of_another_operation_is_refused():
  with pytest.raises(ValueError, match=r"of double is not .*TileConfig"):
    call(OtherConfig(), 8)


@pytest.mark.parametrize("name", ["nonsense", "", "XLA"])
def test_an_unknown_name_is_refused_with_what_is_allowed(name):
  with pytest.raises(ValueError, match=f"implementation='{name}'") as refused:
    call(name, 8)
  for word in ("double", "None", "tiles", "xla"):
    assert word in str(refused.value)


def test_the_device_is_that_of_the_mesh_or_of_the_machine():
  assert current_device().platform == jax.default_backend()
  with traced_for(HOPPER):
    assert current_device() == Device("gpu", HOPPER)


def test_the_device_is_the_default_one(monkeypatch):
  first, elsewhere = jax.devices()[0], mock.Mock(platform="gpu")
  devices = {None: [elsewhere], "cpu": [first]}
  monkeypatch.setattr(jax, "devices", lambda name=None: devices[name])
  assert current_device().platform == "gpu"
  for named in (first, "cpu"):
    with jax.default_device(named):
      assert current_device() == Device(first.platform, first.device_kind)


def test_a_kernel_counts_in_32_bits_where_64_are_the_default():
  counted = []

  def run(x, config):
    counted.append(jnp.arange(config.tile).dtype)
    return 2 * x

  kernel = dataclasses.replace(TILES, run=run, refusal=lambda *_: None)
  choice, everywhere = TileConfig(tile=3, interpret="any"), plain(lambda x: x)
  with jax.enable_x64(True):
    dispatch("double", choice, (kernel, everywhere), 8.0)
    assert jnp.arange(3).dtype == jnp.int64
  assert counted == [jnp.int32]


def test_the_gradient_of_a_kernel_is_that_of_the_form_that_runs_everywhere():
  tiles = dataclasses.replace(TILES, refusal=lambda *_: None)
  choice = TileConfig(tile=7, interpret="any")

  def run(x, candidates):
    return dispatch("double", choice, candidates, x)

  candidates = tiles, CANDIDATES[-1]
  value, slope = jax.value_and_grad(run)(3.0, candidates)
  assert (value, slope) == (307.0, 6.0)
