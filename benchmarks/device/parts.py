"""What `make device` runs, part by part, on a GPU and, tiny, on a CPU."""

from collections.abc import Sequence
from typing import NamedTuple


class Part(NamedTuple):
  """One process.

  Attributes:
    name: Of its result.
    module: What Python runs.
    arguments: Of the module; `{output}` is the file of its result.
    seconds: How long it may take.
    alone: Whether nothing runs beside it, since it takes times.
    environment: Variables of the process, beside those of the device.
  """

  name: str
  module: str
  arguments: Sequence[str] = ()
  seconds: int = 120
  alone: bool = False
  environment: tuple[tuple[str, str], ...] = ()


_MODELS_ON_GPU = (
  ("demo", "bfloat16", "1,2,4,16"),
  ("demo", "float32", "1,2,4,16"),
  ("qwen3_5_0_8b_group", "bfloat16", "1,2,4,16"),
  # XLA's form, which no kernel shortens: two rungs compile in time.
  ("qwen3_5_0_8b_group", "float32", "2,4"),
)
_FAMILIES = (
  ("qwen3_5_moe", "qwen3_next", "mamba2", "granite_hybrid", "bamba"),
  ("nemotron_h", "falcon_h1", "olmo_hybrid", "minimax", "mamba"),
  ("falcon_mamba", "jamba", "recurrent_gemma", "lfm2", "kimi_linear"),
)
"""Those of the tiny presets, by the part that checks them."""


def _suite(workers: int, seconds: int, tests: str) -> Part:
  arguments = (
    "tests/kernels/device_test.py",
    "-m",
    "device",
    f"-n{workers}",
    "-q",
  )
  # Warnings of a driver are no faults of a kernel; and a class compiles its
  # programs once, in one process.
  quiet = "-o", "filterwarnings=default", "--dist=loadscope"
  return Part(
    "kernels_right",
    "pytest",
    (*arguments, *quiet, "-k", tests, "--junitxml={output}"),
    seconds,
  )


def _rows(sizes: str, widths: str) -> Part:
  return Part(
    "rows",
    "benchmarks.device.rows",
    (f"--sizes={sizes}", f"--widths={widths}", "--output={output}"),
  )


def _contract(model: str, dtype: str, ladder: str, seconds: int) -> Part:
  return Part(
    f"contract_{model}_{dtype}",
    "benchmarks.device.contract",
    (
      *(f"--model={model}", f"--dtype={dtype}", f"--ladder={ladder}"),
      "--output={output}",
    ),
    seconds,
  )


def _families() -> list[Part]:
  """The contract of models of all families, some in each part."""
  return [
    _contract(
      ",".join(f"{name}_tiny" for name in names), "bfloat16", "1,2,16", 200
    )._replace(name=f"contract_families_{number}_bfloat16")
    for number, names in enumerate(_FAMILIES, 1)
  ]


def _timed(name: str, module: str, *arguments: str, seconds: int) -> Part:
  # XLA's own form is compared with, and minutes of choosing its products would
  # be all that there is time for.
  quick = (("XLA_FLAGS", "--xla_gpu_autotune_level=0"),)
  arguments = (*arguments, "--output={output}")
  return Part(name, module, arguments, seconds, True, quick)


def _compiled(part: Part) -> Part:
  """The same beside the tests, for what it compiles and not for its times."""
  return part._replace(name=f"{part.name}_compiles", alone=False, seconds=200)


def _gated(steady: Sequence[str]) -> tuple[Part, Part]:
  """The gated delta rule beside others' kernels, without captures and with."""
  gated = "--operations=gated_delta_rule", "--noxla", *steady
  against_others = _timed(
    "gated_delta_rule",
    "benchmarks.kernels",
    *gated,
    "--requests=1,4",
    "--heads=16,32",
    "--tokens=2048,8192",
    "--captures=0",
    seconds=120,
  )
  capturing = _timed(
    "gated_delta_rule_captures",
    "benchmarks.kernels",
    *gated,
    "--requests=1",
    "--heads=32",
    "--tokens=2048",
    "--captures=0,8",
    seconds=60,
  )
  return against_others, capturing


def _models() -> list[Part]:
  """A layer group's programs, and its answers and prompts beside others'."""
  return [
    _timed("layer_group", "benchmarks.device.layer_group", seconds=90),
    _timed(
      "decode",
      "benchmarks.decode_against_transformers",
      "--dtype=bfloat16",
      "--device=cuda",
      "--contexts=2048",
      "--batches=16",
      "--ladder=4",
      seconds=120,
    ),
    _timed(
      "prefill",
      "benchmarks.prefill_against_transformers",
      "--dtype=bfloat16",
      "--device=cuda",
      "--cold",
      "--lengths=2048,8192",
      "--ladder=16",
      seconds=120,
    ),
  ]


def on_gpu(tests: str = "") -> list[Part]:
  """What eight minutes on an H100 or H200 have room for, the best first.

  Args:
    tests: Which of the suite's; all if it is empty.
  """
  kernels = "benchmarks.kernels"
  steady = "--calls=20", "--repeats=5"
  against_others, capturing = _gated(steady)
  models = _models()
  return [
    _suite(10, 240, tests),
    *map(_compiled, (*models, against_others)),
    _rows("64,128,256,512,1024", "1024,3584,14336"),
    *(_contract(*model, 200) for model in _MODELS_ON_GPU),
    *_families(),
    models[0],
    against_others,
    _timed("scheduler_step", "benchmarks.device.scheduler_step", seconds=60),
    *models[1:],
    capturing,
    _timed("decode_steps", "benchmarks.device.decode_steps", seconds=60),
    _timed(
      "other_kernels",
      kernels,
      "--operations=kimi_delta_attention,linear_attention,diagonal_scan,"
      "selective_scan,causal_conv1d,lattice_attention",
      "--requests=1",
      "--tokens=2048",
      "--heads=16",
      "--captures=0",
      *steady,
      seconds=120,
    ),
    _timed(
      "tuned",
      kernels,
      "--tune",
      "--operations=gated_delta_rule",
      "--requests=1",
      "--captures=0",
      "--tokens=2048",
      "--heads=16",
      *steady,
      seconds=90,
    ),
  ]


def on_cpu(tests: str = "") -> list[Part]:
  """The same parts, tiny: that the command works, not how fast anything is."""
  kernels = "benchmarks.kernels"
  once = "--repeats=1", "--requests=1", "--heads=1", "--captures=0"
  return [
    _suite(2, 600, tests),
    _rows("64,128", "64"),
    _contract("tiny", "float32", "1,2", 600),
    _timed("kernels", kernels, "--tokens=64", *once, seconds=600),
    _timed(
      "decode_steps",
      "benchmarks.device.decode_steps",
      "--rows=2",
      "--context=128",
      "--heads=1",
      "--steps=2",
      "--calls=1",
      "--repeats=1",
      seconds=600,
    ),
    _timed(
      "layer_group",
      "benchmarks.device.layer_group",
      "--model=tiny",
      "--dtype=float32",
      "--rows=2",
      "--context=128",
      "--chunks=2",
      "--calls=2",
      "--repeats=1",
      seconds=600,
    ),
    _timed(
      "scheduler_step",
      "benchmarks.device.scheduler_step",
      "--model=tiny",
      "--dtype=float32",
      "--rows=2",
      "--context=128",
      "--steps=4",
      seconds=600,
    ),
    _timed("tuned", kernels, "--tune", "--tokens=64", *once, seconds=600),
  ]
