"""flash-linear-attention's Triton kernel, with the gather and scatter it needs.

Its initial states are an array of their own, so they are gathered from the pool
before it and scattered back behind it. It hands out one state per call: m
captured states take m + 1 calls, one after another. Needs an NVIDIA GPU, and
`pip install torch flash-linear-attention`.
"""

import importlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.kernel_cases import CHUNK, Call, Case


def unavailable(case: Case) -> str | None:
  """Why there is nothing to compare with, or None."""
  if case.operation != "gated_delta_rule":
    return "compares gated_delta_rule only"
  try:
    torch = importlib.import_module("torch")
    importlib.import_module("fla.ops.gated_delta_rule")
  except ImportError as error:
    return f"is not installed ({error})"
  return None if torch.cuda.is_available() else "needs an NVIDIA GPU"


def prepare(case: Case, call: Call) -> Callable[[], None]:
  """The same case as one function that returns when the GPU is done.

  Args:
    case: What to run.
    call: Our call of it; its inputs are copied once, outside of the timing.
  """
  torch: Any = importlib.import_module("torch")
  fla: Any = importlib.import_module("fla.ops.gated_delta_rule")
  rule = fla.chunk_gated_delta_rule

  def on_gpu(x: Any, dtype: Any = None) -> Any:
    wide = torch.from_numpy(np.array(x, np.float32))
    return wide.to("cuda", dtype or getattr(torch, case.dtype))

  q, k, v, log_decay, beta = call.inputs
  groups = v.shape[2] // k.shape[2]
  q, k, v = (
    on_gpu(x).reshape(case.requests, case.tokens, *x.shape[2:])
    for x in (q, k, v)
  )
  q, k = (x.repeat_interleave(groups, dim=2) for x in (q, k))
  g, b = (
    on_gpu(x, torch.float32).reshape(case.requests, case.tokens, -1)
    for x in (log_decay, beta)
  )
  pool = on_gpu(call.pools[0], torch.float32)
  slots = torch.arange(case.requests, device="cuda") * (1 + case.captures)
  bounds = np.concatenate([[0], (case.captured() + 1) * CHUNK, [case.tokens]])

  def run() -> None:
    state, outs = pool[slots], []
    for index, (start, stop) in enumerate(itertools.pairwise(bounds)):
      part = slice(int(start), int(stop))
      out, state = rule(
        *(x[:, part] for x in (q, k, v, g, b)),
        scale=1.0,
        initial_state=state,
        output_final_state=True,
      )
      outs.append(out)
      last = stop == bounds[-1]
      pool[slots if last else slots + 1 + index] = state
    torch.cuda.synchronize()

  return run
