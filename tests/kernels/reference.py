"""What the operations must compute: token by token, NumPy, float64.

Imports nothing of the library. Inputs are taken as they are given (a bfloat16
input has its rounded value), everything after that is float64.
"""

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


def delta_rule(q, k, v, log_decay, beta, state):
  """Outputs [t hv v], and the states after 0..t tokens [t+1 hv k v].

  S = exp(a) S;  u = beta (v - S^T k);  S = S + k u^T;  o = S^T q.
  """
  q, k, v, log_decay, beta, state = wide(q, k, v, log_decay, beta, state)
  groups = v.shape[1] // k.shape[1]
  q, k = (np.repeat(x, groups, axis=1) for x in (q, k))
  outputs, states = [], [state]
  for t in range(q.shape[0]):
    state = np.exp(log_decay[t])[:, None, None] * state
    u = beta[t][:, None] * (v[t] - np.einsum("hkv,hk->hv", state, k[t]))
    state = state + np.einsum("hk,hv->hkv", k[t], u)
    outputs.append(np.einsum("hkv,hk->hv", state, q[t]))
    states.append(state)
  return np.array(outputs), np.array(states)


def delta_rule_gradients(q, k, v, log_decay, beta, state, d_out, d_states):
  """Gradients of sum(out * d_out) + sum(states * d_states), input by input.

  The recurrence of `delta_rule` backwards, one token at a time, for as many
  heads of keys as of values.
  """
  _, states = delta_rule(q, k, v, log_decay, beta, state)
  q, k, v, log_decay, beta = wide(q, k, v, log_decay, beta)
  grads = [np.zeros_like(x) for x in (q, k, v, log_decay, beta)]
  dq, dk, dv, dlog, dbeta = grads
  d_state = d_states[-1].copy()
  for t in reversed(range(q.shape[0])):
    decay = np.exp(log_decay[t])[:, None, None]
    before = decay * states[t]
    error = v[t] - np.einsum("hkv,hk->hv", before, k[t])
    u = beta[t][:, None] * error
    d_state += np.einsum("hk,hv->hkv", q[t], d_out[t])
    dq[t] = np.einsum("hkv,hv->hk", states[t + 1], d_out[t])
    du = np.einsum("hkv,hk->hv", d_state, k[t])
    dbeta[t] = (du * error).sum(-1)
    dv[t] = beta[t][:, None] * du
    d_before = d_state - np.einsum("hk,hv->hkv", k[t], dv[t])
    dk[t] = np.einsum("hkv,hv->hk", d_state, u)
    dk[t] -= np.einsum("hkv,hv->hk", before, dv[t])
    dlog[t] = (d_before * before).sum((-1, -2))
    d_state = decay * d_before + d_states[t]
  return *grads, d_state


def convolution(x, weight, past):
  """y_t = sum_i weight_i x_{t-w+1+i}; the inputs before x are `past`."""
  x, weight, past = wide(x, weight, past)
  extended, window = np.concatenate([past, x]), weight.shape[0]
  return np.array(
    [(extended[t : t + window] * weight).sum(0) for t in range(x.shape[0])]
  )


def causal_attention(q, k, v, first=0):
  """softmax(q K^T) V; row i of q stands at token first + i. [t h k]"""
  q, k, v = wide(q, k, v)
  groups = q.shape[1] // k.shape[1]
  k, v = (np.repeat(x, groups, axis=1) for x in (k, v))
  out = np.zeros((q.shape[0], q.shape[1], v.shape[2]))
  for i in range(q.shape[0]):
    scores = np.einsum("hk,shk->hs", q[i], k[: first + i + 1])
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    out[i] = np.einsum("hs,shv->hv", weights, v[: first + i + 1])
  return out
