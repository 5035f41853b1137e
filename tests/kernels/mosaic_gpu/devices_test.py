"""Which GPUs take the kernels, and the products of those without wgmma."""

import importlib

import jax.numpy as jnp
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from sparse_prefix_jax.kernels.implementations import Device, DoesNotFit
from sparse_prefix_jax.kernels.mosaic_gpu import devices
from sparse_prefix_jax.kernels.mosaic_gpu.launch import MosaicGpuConfig
from tests.kernels.devices import BLACKWELL, HOPPER, lowered, traced_for
from tests.kernels.lattice_attention import mosaic_gpu_test as attention
from tests.kernels.matrix_suite import (
  each_operation,
  operation_at,
  usual_where,
)
from tests.kernels.mosaic_gpu.suite import check_short, interpreted

OPERATIONS = (
  *("gated_delta_rule", "kimi_delta_attention", "linear_attention"),
  *("diagonal_scan", "causal_conv1d", "lattice_attention"),
)
HAS_PRODUCTS_OF_WARPS = hasattr(plgpu, "mma")


@pytest.fixture
def interpreted_mma(monkeypatch):
  """What mma computes, in place of the instruction: no interpreter has it."""

  calls = []

  def mma(total, left, right):
    calls.append(total.shape)
    return total + jnp.dot(left, right, preferred_element_type=jnp.float32)

  monkeypatch.setattr(plgpu, "mma", mma, raising=False)
  monkeypatch.setattr(plgpu, "layout_cast", lambda x, layout: x)
  monkeypatch.setattr(devices, "_INTERPRETER_HAS_MMA", True)
  yield
  assert calls


@pytest.mark.parametrize(
  ("kind", "gpu"),
  [
    ("NVIDIA H100 80GB HBM3", devices.HOPPER),
    ("NVIDIA H200", devices.HOPPER),
    ("NVIDIA GH200 480GB", devices.HOPPER),
    ("NVIDIA H20", devices.Gpu(78, True)),
    ("NVIDIA B200", devices.BLACKWELL),
    ("NVIDIA GB300", devices.Gpu(160, False)),
    ("NVIDIA A100-SXM4-80GB", None),
    ("NVIDIA GeForce RTX 5090", None),
  ],
)
def test_a_gpu_is_known_by_its_name(kind, gpu):
  assert devices.known(Device("gpu", kind)) == gpu


def mosaic_gpu_kernels():
  """Every kernel for GPUs, by its operation."""
  for name in OPERATIONS:
    api = importlib.import_module(f"sparse_prefix_jax.kernels.{name}.api")
    for found in (*api.IMPLEMENTATIONS, *api.STEP_IMPLEMENTATIONS):
      if found.config is MosaicGpuConfig:
        yield pytest.param(found, id=name)


@pytest.mark.parametrize("kernel", [*mosaic_gpu_kernels()])
def test_more_programs_than_a_grid_has_are_refused(kernel):
  many = jnp.zeros((65_536, 1))
  told = kernel.refusal(Device("gpu", HOPPER), MosaicGpuConfig(), many)
  assert told == "takes 65535 chunks or rows at most, not 65536"


def test_every_operation_has_two_kernels():
  assert len([*mosaic_gpu_kernels()]) == 2 * len(OPERATIONS)


def refused(kind, products):
  device = Device("gpu", kind)
  return devices.refused_device(device, MosaicGpuConfig(), products=products)


def test_a_device_without_these_instructions_is_refused():
  reason = refused("NVIDIA A100-SXM4-80GB", products=False)
  assert reason is not None
  assert reason.endswith("and this is a NVIDIA A100-SXM4-80GB")
  assert refused(HOPPER, products=True) is None


def test_blackwell_needs_a_jax_with_products_of_warps():
  assert refused(BLACKWELL, products=False) is None
  reason = refused(BLACKWELL, products=True)
  assert (reason is None) == HAS_PRODUCTS_OF_WARPS
  assert HAS_PRODUCTS_OF_WARPS or "needs JAX 0.11" in reason


def picked(function, arguments):
  """Whether a B200 gets the kernel; if not, its refusal names the JAX."""
  if HAS_PRODUCTS_OF_WARPS:
    return "mosaic_gpu" in lowered(function, *arguments, kind=BLACKWELL)
  assert "mosaic_gpu" not in lowered(function, *arguments, kind=BLACKWELL)
  with traced_for(BLACKWELL), pytest.raises(DoesNotFit, match=r"JAX 0\.11"):
    function(*arguments, implementation="mosaic_gpu")
  return False


@each_operation
def test_blackwell_gets_the_recurrences(name):
  operation = operation_at(name, (2, 4, 128, 128), "bfloat16")
  call = operation.empty_call(4, 9)
  assert picked(operation.packed, call) == HAS_PRODUCTS_OF_WARPS


def test_blackwell_gets_attention():
  call = attention.arguments()
  assert picked(attention.lattice_attention, call) == HAS_PRODUCTS_OF_WARPS


@pytest.mark.usefixtures("interpreted_mma")
@pytest.mark.parametrize("name", usual_where(["linear_attention"]))
def test_products_of_warps_are_right_and_of_one_set_of_bits(name):
  operation = operation_at(name, (1, 1, 128, 64), "bfloat16")
  config = MosaicGpuConfig(columns=32, stages=1)
  check_short(operation, config, "correlated-mixed-gates", BLACKWELL)


@pytest.mark.usefixtures("interpreted_mma")
def test_attention_by_products_of_warps_is_right():
  attention.check_short(BLACKWELL)


def test_products_of_warps_are_not_interpreted():
  operation = operation_at("linear_attention", (1, 1, 64, 64), "bfloat16")
  config = interpreted(MosaicGpuConfig())
  with traced_for(BLACKWELL), pytest.raises(DoesNotFit, match="cannot interp"):
    operation.packed(*operation.empty_call(1, 1), implementation=config)
