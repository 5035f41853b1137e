"""Which implementation of an operation runs: by device and shape, or by name.

Every operation lists its implementations, best first. Each says why it does not
fit a call (`refusal`), which sizes it would take (`heuristic`) and computes it
(`run`); `dispatch` is the one place that chooses.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np


class DoesNotFit(ValueError):
  """An implementation was named that cannot take the call."""


class Device(NamedTuple):
  """What a program is made for: "cpu", "gpu" or "tpu", and which one."""

  platform: str
  kind: str


@dataclasses.dataclass(frozen=True)
class Config:
  """Static choices of one implementation; subclasses add tile sizes.

  A config may stand wherever the name of its implementation may, and then
  overrides what the heuristic would have taken.

  Attributes:
    name: Name of the implementation.
    platform: The platform that it needs, or None.
    tunable: The values worth trying, by field.
    interpret: Parameters of Pallas's interpreter, which runs on any device;
      None compiles.
  """

  name: ClassVar[str] = "xla"
  platform: ClassVar[str | None] = None
  tunable: ClassVar[Mapping[str, Sequence[int]]] = types.MappingProxyType({})
  interpret: Hashable = None


Choice: TypeAlias = str | Config | None
"""What callers say: a name, a config, or None for the best that fits."""


@dataclasses.dataclass(frozen=True)
class Implementation:
  """One way to compute an operation.

  Attributes:
    config: The class of its static choices; its name is the implementation's.
    run: The operation's arguments and `config=` -> its results.
    refusal: `(device, config, *arguments, **options)` -> why it does not fit,
      or None. The platform has been compared before.
    heuristic: `(device, *arguments, **options)` -> the config for these shapes.
  """

  config: type[Config]
  run: Callable[..., Any]
  refusal: Callable[..., str | None]
  heuristic: Callable[..., Config]


def plain(run: Callable[..., Any]) -> Implementation:
  """An implementation in XLA operations: fits everywhere, has no sizes."""

  def without_config(*arguments: Any, config: Config, **options: Any) -> Any:
    del config
    return run(*arguments, **options)

  return Implementation(
    config=Config,
    run=without_config,
    refusal=lambda *_, **__: None,
    heuristic=lambda *_, **__: Config(),
  )


def current_device() -> Device:
  """The device that the program under trace is for.

  A mesh that names a device (lowering ahead of time) comes first, then what
  `jax.default_device` says, then the machine's own default.
  """
  abstract = jax.sharding.get_abstract_mesh().abstract_device
  if abstract is not None and abstract.platform is not None:
    platform = str(abstract.platform)
    return Device(
      "gpu" if platform == "cuda" else platform, abstract.device_kind
    )
  settings: Any = jax.config  # whose fields are made as JAX loads
  device = settings.jax_default_device
  if device is None or isinstance(device, str):
    device = jax.devices(device)[0]
  return Device(device.platform, device.device_kind)


def dispatch(
  operation: str,
  choice: Choice,
  candidates: Sequence[Implementation],
  *arguments: Any,
  **options: Any,
) -> Any:
  """Runs the first candidate that fits, or the one that `choice` names.

  Args:
    operation: Name of the operation, for the message.
    choice: A name, a config, or None.
    candidates: The operation's implementations, best first.
    *arguments: Arguments of the operation.
    **options: Options of the operation.

  Raises:
    ValueError: If the name is not known, or the config is another operation's.
    DoesNotFit: If what is named does not fit, with the reason of each
      candidate; a ValueError too.
  """
  # NumPy's arrays have no updates, and traced numbers do not index them.
  arguments = jax.tree.map(_of_jax, arguments)
  names = [candidate.config.name for candidate in candidates]
  wanted = choice.name if isinstance(choice, Config) else choice
  own = [candidate.config for candidate in candidates]
  if isinstance(choice, Config) and type(choice) not in own:
    raise ValueError(
      f"implementation={choice!r} of {operation} is not of its configs: "
      f"{', '.join(f'{kind.__module__}.{kind.__name__}' for kind in own)}."
    )
  if wanted is not None and wanted not in names:
    raise ValueError(
      f"implementation={wanted!r} of {operation} does not exist; choose None "
      f"or one of {', '.join(names)}."
    )
  device, reasons = current_device(), {}
  for candidate in candidates:
    config = choice if isinstance(choice, Config) else None
    if config is None or type(config) is not candidate.config:
      config = candidate.heuristic(device, *arguments, **options)
    reason = _refusal(candidate, device, config, arguments, options)
    reasons[candidate.config.name] = reason or "fits"
    if reason is None and wanted in (None, candidate.config.name):
      run = functools.partial(candidate.run, config=config, **options)
      return _with_gradient(run, candidates, options)(*arguments)
  told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
  raise DoesNotFit(
    f"implementation={wanted!r} of {operation} does not fit. {told}."
  )


def _of_jax(leaf: Any) -> Any:
  """NumPy's arrays as JAX's; anything else as it is."""
  return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


def _with_gradient(
  run: functools.partial[Any],
  candidates: Sequence[Implementation],
  options: Mapping[str, Any],
) -> Callable[..., Any]:
  """What is run, with the gradient of the form that runs everywhere.

  A kernel has no reverse mode. Its backward pass computes the same mathematics
  again in XLA operations, from the arguments, and differentiates that.
  """
  everywhere = candidates[-1]
  if run.func is everywhere.run or everywhere.config is not Config:
    return run
  plainly = functools.partial(everywhere.run, config=Config(), **options)

  @jax.custom_vjp
  def differentiable(*arguments: Any) -> Any:
    # Kernels count in 32 bits, whatever JAX's default is.
    with jax.enable_x64(False):
      return run(*arguments)

  def forward(*arguments: Any) -> tuple[Any, Any]:
    return differentiable(*arguments), arguments

  def backward(arguments: Any, cotangents: Any) -> Any:
    return jax.vjp(plainly, *arguments)[1](cotangents)

  differentiable.defvjp(forward, backward)
  return differentiable


def _refusal(
  candidate: Implementation,
  device: Device,
  config: Config,
  arguments: tuple[Any, ...],
  options: dict[str, Any],
) -> str | None:
  needed = candidate.config.platform
  if needed not in (None, device.platform) and config.interpret is None:
    return f"needs a {needed}, and this is a {device.platform}"
  return candidate.refusal(device, config, *arguments, **options)
