"""What the operations must compute: token by token, in float64.

Imports nothing of the library. Inputs are taken as they are given (a bfloat16
input has its rounded value), everything after that is float64. The recurrences
are written once, for NumPy and for JAX's arrays: JAX differentiates them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def wide(*arrays):
  """The arrays in float64."""
  return tuple(np.asarray(x).astype(np.float64) for x in arrays)


def relative_error(x, expected):
  """max |x - expected| / max |expected|; NaN or infinite if x is."""
  (x,) = wide(x)
  assert x.shape == expected.shape
  if x.size == 0:
    return 0.0
  # Below 1e-30 float32 has no digits to compare: that much counts as zero.
  scale = max(np.abs(expected).max(), 1e-30)
  return float(np.abs(x - expected).max() / scale)


def delta_rule_token(xp, state, q, k, v, log_decay, beta):
  """S = exp(a) S;  u = beta (v - S^T k);  S = S + k u^T;  o = S^T q.

  Decays [hv] are per head, [hv k] per key channel.
  """
  q, k = _per_value_head(xp, v, q, k)
  state = xp.exp(log_decay.reshape(len(v), -1))[:, :, None] * state
  u = beta[:, None] * (v - xp.einsum("hkv,hk->hv", state, k))
  state = state + xp.einsum("hk,hv->hkv", k, u)
  return state, xp.einsum("hkv,hk->hv", state, q)


def linear_attention_token(xp, state, q, k, v, log_decay):
  """S = exp(a) S + k v^T;  o = S^T q."""
  q, k = _per_value_head(xp, v, q, k)
  state = xp.exp(log_decay)[:, None, None] * state
  state = state + xp.einsum("hk,hv->hkv", k, v)
  return state, xp.einsum("hkv,hk->hv", state, q)


def diagonal_token(xp, state, x, log_decay):
  """h = exp(a) h + x, which is also the output."""
  state = xp.exp(log_decay) * state + x
  return state, state


def selective_token(rate, xp, state, x, log_decay, b, c):
  """h[d, e] = exp(a[d] rate[d, e]) h[d, e] + x[d] b[e];  y[d] = c . h[d]."""
  state = xp.exp(log_decay[:, None] * rate) * state + x[:, None] * b[None]
  return state, xp.einsum("de,e->d", state, c)


def convolution_token(weight, xp, state, x):
  """y = sum_i weight_i x_{t-w+1+i}; the state is the last w-1 inputs."""
  window = xp.concatenate([state, x[None]])
  return window[1:], (window * weight).sum(0)


def _per_value_head(xp, v, *arrays):
  return [xp.repeat(x, len(v) // len(x), axis=0) for x in arrays]


def run(token, inputs, state):
  """Outputs [t ...], and the states after 0..t tokens [t+1 ...]."""
  *inputs, state = wide(*inputs, state)
  outputs, states = [], [state]
  for t in range(len(inputs[0])):
    state, out = token(np, state, *(x[t] for x in inputs))
    outputs.append(out)
    states.append(state)
  return np.array(outputs), np.array(states)


def gradients(token, inputs, state, d_out, d_states):
  """Of sum(out * d_out) + sum(states * d_states), by every input and the state.

  Automatic differentiation of the recurrence in float64.
  """

  def loss(inputs, state):
    def body(state, x):
      state, out = token(jnp, state, *x)
      return state, (out, state)

    _, (outs, states) = jax.lax.scan(body, state, inputs)
    later = jnp.sum(outs * d_out) + jnp.sum(states * d_states[1:])
    return later + jnp.sum(state * d_states[0])

  with jax.enable_x64(True):
    arguments = wide(*inputs), wide(state)[0]
    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(*arguments)
    return jax.tree.map(np.asarray, grads)


def causal_attention(q, k, v, first=0, window=None):
  """softmax(q K^T) V; row i of q stands at token first + i. [t h k]

  With a window, a token sees itself and the window - 1 before it.
  """
  q, k, v = wide(q, k, v)
  groups = q.shape[1] // k.shape[1]
  k, v = (np.repeat(x, groups, axis=1) for x in (k, v))
  out = np.zeros((q.shape[0], q.shape[1], v.shape[2]))
  for i in range(q.shape[0]):
    end = first + i + 1
    seen = slice(max(0, end - window) if window else 0, end)
    scores = np.einsum("hk,shk->hs", q[i], k[seen])
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    out[i] = np.einsum("hs,shv->hv", weights, v[seen])
  return out


def delta_rule(q, k, v, log_decay, beta, state):
  """Outputs and states of `delta_rule_token` for a whole sequence."""
  return run(delta_rule_token, (q, k, v, log_decay, beta), state)


def convolution(x, weight, past):
  """The outputs of `convolution_token` for a whole sequence."""
  token = functools.partial(convolution_token, *wide(weight))
  return run(token, [x], past)[0]
