"""linear_attention: what layers call, whatever computes it."""

from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from sparse_prefix_jax.kernels import differentiable
from sparse_prefix_jax.kernels.checks import (
  as_gates,
  as_precision,
  check_heads,
  check_shapes,
)
from sparse_prefix_jax.kernels.chunks import Captures, Chunks
from sparse_prefix_jax.kernels.implementations import Choice, dispatch, plain
from sparse_prefix_jax.kernels.linear_attention import (
  mosaic_gpu,
  mosaic_tpu,
  xla,
)
from sparse_prefix_jax.kernels.slot_checks import (
  check_matrix_core,
  check_rows,
  check_slots,
)

_PRECISION = lax.Precision.HIGHEST
IMPLEMENTATIONS = (
  mosaic_gpu.IMPLEMENTATION,
  mosaic_tpu.IMPLEMENTATION,
  plain(xla.packed),
)
STEP_IMPLEMENTATIONS = (mosaic_gpu.STEP, mosaic_tpu.STEP, plain(xla.step))


def linear_attention(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c h k"],
  v: Float[Array, "n c hv v"],
  log_decay: Float32[Array, "n c hv"],
  pool: Float32[Array, "s hv k v"],
  chunks: Chunks,
  *,
  precision: lax.Precision = _PRECISION,
  implementation: Choice = None,
) -> tuple[Float32[Array, "n c hv v"], Float32[Array, "s hv k v"]]:
  """S_t = exp(a_t) S_{t-1} + k_t v_t^T, o_t = S_t^T q_t.

  Mamba-2 with q = C, k = B, v = dt x and a = dt A; RetNet with constant decays.
  Restores each request from its slot, scans its chunks and captures the state
  after any subset of them, in one pass.

  Args:
    q: Queries, scaled by the caller.
    k: Keys.
    v: Values; hv is a multiple of h.
    log_decay: Log decay a_t <= 0; -inf resets the state.
    pool: States, donated: captured states appear in the result.
    chunks: What each packed chunk reads, writes and holds.
    precision: Precision of the products.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    out and pool. Rows past a chunk's length are unspecified (and finite).

  Raises:
    ValueError: If shapes do not belong together, or if no implementation fits,
      with the reason of each.

  Example:
    >>> import jax.numpy as jnp
    >>> chunks = Chunks(*jnp.array([[-1], [0], [3], [0], [0]]))  # from ZERO
    >>> x, no_decay = jnp.ones((1, 4, 1, 2)), jnp.zeros((1, 4, 1))
    >>> pool = jnp.zeros((1, 1, 2, 2))
    >>> out, pool = linear_attention(x, x, x, no_decay, pool, chunks)
    >>> out[0, :3, 0, 0].tolist(), pool[0, 0, 0, 0].item()
    ([2.0, 4.0, 6.0], 3.0)
  """
  sizes = check_shapes(
    "linear_attention",
    chunks,
    q=(q, "n c h k"),
    k=(k, "n c h k"),
    v=(v, "n c hv v"),
    log_decay=(log_decay, "n c hv"),
    pool=(pool, "s hv k v"),
  )
  check_heads("linear_attention", sizes, pool)
  check_slots("linear_attention", chunks, sizes)
  (log_decay,) = as_gates(log_decay)
  return dispatch(
    "linear_attention",
    implementation,
    IMPLEMENTATIONS,
    q,
    k,
    v,
    log_decay,
    pool,
    chunks,
    precision=as_precision("linear_attention", precision),
  )


def linear_attention_core(
  q: Float[Array, "n c h k"],
  k: Float[Array, "n c h k"],
  v: Float[Array, "n c hv v"],
  log_decay: Float32[Array, "n c hv"],
  length: Int32[Array, "n"],
  *,
  initial_state: Float32[Array, "hv k v"],
  capture_at: Captures = (),
  precision: lax.Precision = _PRECISION,
  implementation: Choice = None,
) -> differentiable.Scanned:
  """The operation for one request, without a pool: what training uses.

  Differentiable in the inputs, the initial and the captured states; it keeps
  one state per chunk for that. Its bits are those of `linear_attention`.

  Args:
    q: As in `linear_attention`.
    k: As in `linear_attention`.
    v: As in `linear_attention`.
    log_decay: As in `linear_attention`.
    length: Real tokens of each chunk.
    initial_state: The state before the first chunk.
    capture_at: Numbers of chunks after which to hand out the state.
    precision: Precision of the products.
    implementation: What computes the forward pass: a name, a config or None.

  Returns:
    Outputs [n c hv v], the last state, the captured states [m hv k v].

  Raises:
    ValueError: As `linear_attention`; or if `capture_at` is not made of
      distinct numbers from 1 to n.
  """
  check_matrix_core(
    "linear_attention_core",
    length,
    initial_state,
    *(q, k, v),
    log_decay=(log_decay, "n c hv"),
  )
  core = differentiable.core_of(
    linear_attention,
    xla.chunk,
    precision=precision,
    implementation=implementation,
  )
  return differentiable.scan(
    core,
    (q, k, v, log_decay),
    initial_state,
    length,
    capture_at,
  )


def linear_attention_step(
  q: Float[Array, "b h k"],
  k: Float[Array, "b h k"],
  v: Float[Array, "b hv v"],
  log_decay: Float32[Array, "b hv"],
  pool: Float32[Array, "s hv k v"],
  read: Int32[Array, "b"],
  write: Int32[Array, "b"],
  *,
  implementation: Choice = None,
) -> tuple[Float32[Array, "b hv v"], Float32[Array, "s hv k v"]]:
  """One token of b running sequences: slot `read` -> token -> slot `write`.

  Args:
    q: Queries, scaled by the caller.
    k: Keys.
    v: Values; hv is a multiple of h.
    log_decay: Log decay a_t <= 0; -inf resets the state.
    pool: States, donated: the new ones appear in the result.
    read: Slot of the state before the token, or ZERO.
    write: Slot that receives the state after it, or NONE; no slot twice, and
      none that another row reads.
    implementation: A name, a config, or None for the best that fits.

  Returns:
    out and pool.

  Raises:
    ValueError: Shapes do not belong together, a slot is none, or no
      implementation fits, with the reason of each.
  """
  sizes = check_rows(
    "linear_attention_step",
    read,
    write,
    q=(q, "b h k"),
    k=(k, "b h k"),
    v=(v, "b hv v"),
    log_decay=(log_decay, "b hv"),
    pool=(pool, "s hv k v"),
  )
  check_heads("linear_attention_step", sizes, pool)
  (log_decay,) = as_gates(log_decay)
  return dispatch(
    "linear_attention_step",
    implementation,
    STEP_IMPLEMENTATIONS,
    q,
    k,
    v,
    log_decay,
    pool,
    read,
    write,
  )
