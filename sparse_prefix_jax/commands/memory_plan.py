"""`memory_plan`: what fits into the memory of a device."""

import importlib
from pathlib import Path

from absl import flags

from sparse_prefix_jax.writable import check_writable, write_json_file

from .printing import say


def memory_plan_command(values: flags.FlagValues) -> None:
  """Prints what fits into a memory; the models are imported late.

  Args:
    values: the flags of the command.
  """
  planner = importlib.import_module("sparse_prefix_jax.runtime.memory_plan")
  named = importlib.import_module("sparse_prefix_jax.models.named")
  config = named.named_config(
    values.preset,
    values.model,
    dtype=values.dtype,
    page_dtype=values.page_dtype,
    max_length=values.max_length,
  )
  if values.report is not None:
    read = [Path(values.model, "config.json")] if values.model else []
    check_writable(Path(values.report), *read)
  plan = planner.memory_plan(config, values.memory, progress=True)
  if values.report is not None:
    write_json_file(values.report, plan.to_json())
  say(plan.table())
