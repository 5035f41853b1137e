"""How programs of carries differentiate: once, in reverse, by a rule."""

from collections.abc import Callable
from typing import Any

import jax
from jax.custom_batching import sequential_vmap

from sparse_prefix_jax.kernels.differentiable import without_gradient

_ONCE = (
  "a gradient of scan or cell was differentiated again; they differentiate "
  "once, in reverse mode."
)


def differentiable_once(
  plain: Callable[..., Any],
  forward: Callable[..., tuple[Any, Any]],
  backward: Callable[..., Any],
) -> Callable[..., Any]:
  """A program whose both directions are mapped by `vmap`, and differentiate.

  `sequential_vmap` alone has no reverse mode, hence the rule outside of it. A
  second derivative would be of what the rule is made of, and is refused.

  Args:
    plain: `(inputs, counts) -> outputs`, where nobody asks for a gradient.
    forward: `(inputs, counts) -> outputs, kept`, where somebody does.
    backward: `(kept, counts, d_outputs) -> d_inputs`.

  Returns:
    `(inputs, counts) -> outputs`.
  """
  forwards = without_gradient(sequential_vmap(forward), _ONCE)
  backwards = without_gradient(sequential_vmap(backward), _ONCE)

  @jax.custom_vjp
  def run(inputs: Any, counts: Any) -> Any:
    return sequential_vmap(plain)(inputs, counts)

  def keeping(inputs: Any, counts: Any) -> tuple[Any, Any]:
    out, kept = forwards(inputs, counts)
    return out, (kept, counts)

  def pulled(kept: Any, d: Any) -> tuple[Any, None]:
    return backwards(*kept, d), None

  run.defvjp(keeping, pulled)
  return run
