"""Requests to serve or to replay: loaders and generators, never a model."""

from .adversarial import adversarial_streams as adversarial_streams
from .adversarial import changed_regime as changed_regime
from .block_sizes import DEFAULT_BLOCK as DEFAULT_BLOCK
from .documents import load_quality as load_quality
from .documents import load_system_prompts as load_system_prompts
from .interleaving import interleave as interleave
from .mooncake import TIME_UNITS as TIME_UNITS
from .mooncake import TraceWarning as TraceWarning
from .mooncake import load_mooncake as load_mooncake
from .request import Trace as Trace
from .request import TraceRequest as TraceRequest
from .request import common_prefix as common_prefix
from .request import token_trace as token_trace
from .synthetic import synthetic_stream as synthetic_stream
from .token_file import load_token_file as load_token_file
from .token_file import save_token_file as save_token_file
