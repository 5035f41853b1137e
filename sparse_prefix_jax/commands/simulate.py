"""`simulate`: a request stream replayed without a model."""

import importlib
import warnings
from pathlib import Path
from typing import Any

from absl import flags

from sparse_prefix_jax import evaluation, extras, placement, workloads
from sparse_prefix_jax.writable import check_writable

from .command_flags import SEED, WARMUP, share_in
from .printing import say, tell


def _load_trace(values: flags.FlagValues) -> tuple[workloads.Trace, float]:
  """Reads the request stream that the flags name.

  Token files are interleaved as in the paper; traces keep their order in time.

  Returns:
    The stream in the order of serving, and the warm-up it has by default.

  Raises:
    ValueError: an unknown kind of file, a malformed one, or a flag that does
      not go with it.
    OSError: the file cannot be read.
  """
  path = Path(values.requests)
  if path.suffix == ".npz":
    for name in ("block_size", "time_unit", "skip_bad_lines"):
      if values[name].value is not None:
        raise ValueError(f"--{name} is for traces, not for token files")
    trace = workloads.load_token_file(path)
    seed = SEED if values.interleave_seed is None else values.interleave_seed
    if not -1 <= seed < 2**32:
      raise ValueError(
        f"--interleave_seed must be -1 or in [0, 2**32), got {seed}"
      )
    return (trace if seed == -1 else workloads.interleave(trace, seed)), WARMUP
  if ".jsonl" not in path.suffixes:
    raise ValueError(
      f"--requests must end in .npz, .jsonl, .jsonl.gz or .jsonl.xz, got {path}"
    )
  if values.interleave_seed is not None:
    raise ValueError(
      "--interleave_seed is for token files; traces are replayed in order"
    )
  with warnings.catch_warnings(record=True) as notes:
    warnings.simplefilter("always")
    trace = workloads.load_mooncake(
      path,
      values.block_size,
      time_unit=values.time_unit,
      skip_bad_lines=bool(values.skip_bad_lines),
    )
  for note in notes:
    tell(str(note.message))
  return trace, 0.0


_PRESET = "qwen3_5_0_8b"
# The flags that say what a byte of a capacity is for.
_OF_BYTES = ("preset", "model", "dtype", "page_dtype", "state_share")


def _sizes(values: flags.FlagValues, chunk: int) -> evaluation.ModelSizes:
  """Bytes of a state and of a page of `chunk` tokens, and the cost of prefill.

  They are those of a preset, or of the configuration in a model's folder;
  weights are not read.

  Raises:
    ValueError: both are named, there is no such preset, or the configuration is
      none that can be computed here.
    OSError: the configuration cannot be read.
  """
  named = importlib.import_module("sparse_prefix_jax.models.named")
  name = values.preset or (None if values.model else _PRESET)
  # One rung fits models of any width, and sizes do not depend on rungs.
  ladder = (1,) if values.model else None
  config = named.named_config(
    name,
    values.model,
    dtype=values.dtype,
    page_dtype=values.page_dtype,
    ladder=ladder,
  )
  return evaluation.ModelSizes.of_model(config, chunk, name or values.model)


def _state_share(text: str | None) -> float | str | None:
  """How `--state_share` divides a capacity, as `simulate` takes it.

  Raises:
    ValueError: the text is no share.
  """
  known = text in (None, "undivided")
  return text if known else share_in(text, others="undivided or ")


def _plots(path: str | None, *others: str | Path) -> Any:
  """The module that draws, before a long replay; None where nothing is drawn.

  Args:
    path: what `--plot` names.
    others: files that it must not be.

  Raises:
    ValueError: it is no PNG file.
    MissingExtraError: matplotlib is not installed.
    OSError: the picture cannot be written.
  """
  if path is None:
    return None
  if not path.endswith(".png"):
    raise ValueError(f"--plot must end in .png, got {path}")
  check_writable(Path(path), *others)
  extras.optional("matplotlib.figure", "plot")
  return importlib.import_module("sparse_prefix_jax.evaluation.replay_plots")


def simulate_command(values: flags.FlagValues) -> None:
  """Replays a stream, writes the report and the picture, and prints it.

  Args:
    values: the flags of the command.
  """
  report_path = Path(values.report)
  capacity = evaluation.parse_capacity(values.capacity)
  for name in _OF_BYTES:
    if values[name].value is not None and capacity.kind != "bytes":
      raise ValueError(f"--{name} is for a capacity in bytes")
  state_share = _state_share(values.state_share)
  trace, warmup = _load_trace(values)
  chunk = placement.DEFAULT_CHUNK if trace.block == 1 else trace.block
  policy = placement.PlacementPolicy(
    values.placement or evaluation.default_placement(capacity, values.eviction),
    values.budget,
    chunk=chunk,
  )
  if values.warmup_fraction is not None:
    warmup = values.warmup_fraction
  sizes = _sizes(values, chunk) if capacity.kind == "bytes" else None
  check_writable(report_path, values.requests)
  plots = _plots(values.plot, values.requests, report_path)
  report = evaluation.simulate(
    trace,
    policy,
    capacity,
    eviction=values.eviction,
    warmup_fraction=warmup,
    sizes=sizes,
    state_share=state_share,
    progress=True,
  )
  evaluation.write_json(report_path, report)
  if plots is not None:
    stretches = evaluation.bounds_over_time(
      trace, report, chunk=chunk, sizes=sizes
    )
    plots.plot_replay(report, stretches, values.plot)
  say(
    f"{report.placement}: {report.tokens_saved} of {report.tokens_total} prompt"
    f" tokens saved ({report.saved_fraction:.1%})\n{report.table()}"
  )
