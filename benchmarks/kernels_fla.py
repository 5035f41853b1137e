"""flash-linear-attention's Triton kernel, with the gather and scatter it needs.

Its initial states are an array of their own, so they are gathered from the pool
before it and scattered back behind it. It hands out one state per call: m
captured states take m + 1 calls, one after another. Needs an NVIDIA GPU, and
`pip install torch flash-linear-attention`.
"""

import functools
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


def prepare(
  case: Case, call: Call, device: str = "cuda"
) -> functools.partial[Any]:
  """The same case as one function that returns when the GPU is done.

  What is no work of a server is outside of it: inputs are copied and cut at the
  captures beforehand.

  Args:
    case: What to run.
    call: Our call of it.
    device: Of PyTorch.

  Returns:
    A function of outputs [b t hv v] and pool [s hv k v].
  """
  torch: Any = importlib.import_module("torch")
  fla: Any = importlib.import_module("fla.ops.gated_delta_rule")

  def by_request(x: Any, dtype: Any) -> Any:
    wide = torch.from_numpy(np.array(x, np.float32)).to(device, dtype)
    return wide.reshape(case.requests, case.tokens, *x.shape[2:])

  low, high = getattr(torch, case.dtype), torch.float32
  dtypes = low, low, low, high, high
  inputs = [by_request(*x) for x in zip(call.inputs, dtypes, strict=True)]
  pool = torch.from_numpy(np.array(call.pools[0], np.float32)).to(device)
  first = torch.arange(case.requests, device=device) * (1 + case.captures)
  ends = [*((case.captured() + 1) * CHUNK).tolist(), case.tokens]
  parts = [
    [x[:, start:stop].contiguous() for x in inputs]
    for start, stop in itertools.pairwise([0, *ends])
  ]
  # Captures in their slots, and the last state in that of the first.
  slots = [*(first + 1 + index for index in range(len(parts) - 1)), first]

  def once() -> tuple[Any, Any]:
    state, outs = pool[first], []
    for part, slot in zip(parts, slots, strict=True):
      out, state = fla.chunk_gated_delta_rule(
        *part, scale=1.0, initial_state=state, output_final_state=True
      )
      outs.append(out)
      pool[slot] = state
    return torch.cat(outs, dim=1) if len(outs) > 1 else outs[0], pool

  return functools.partial(_repeat, once)


def graphed(run: functools.partial[Any]) -> Callable[..., Any]:
  """The same calls without the time that Python takes to launch them.

  A CUDA graph of one call, which has run before, so that it is tuned.
  """
  torch: Any = importlib.import_module("torch")
  graph = torch.cuda.CUDAGraph()
  (call,) = run.args
  with torch.inference_mode(), torch.cuda.graph(graph):
    call()
  return functools.partial(_repeat, graph.replay)


def _repeat(call: Callable[[], Any], calls: int = 1) -> Any:
  """Calls, and waits until the GPU is done."""
  torch: Any = importlib.import_module("torch")
  result = None
  with torch.inference_mode():
    for _ in range(calls):
      result = call()
  if torch.cuda.is_available():
    torch.cuda.synchronize()
  return result


def as_ours(case: Case, result: tuple[Any, Any]) -> tuple[Any, Any]:
  """Outputs [n c hv v] and pools of a run, as float32 of NumPy."""
  out, pool = (x.float().cpu().numpy() for x in result)
  return out.reshape(case.packed, CHUNK, *out.shape[2:]), (pool,)
