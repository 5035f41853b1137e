"""Many requests at once: who runs, what each step computes, who makes room."""

from .asked import QueueFullError as QueueFullError
from .device_sampler import DeviceSampler as DeviceSampler
from .events import Ending as Ending
from .events import Event as Event
from .events import Finished as Finished
from .events import RequestHandle as RequestHandle
from .events import Started as Started
from .events import TokenEvent as TokenEvent
from .sampler import Sampled as Sampled
from .sampler import Sampler as Sampler
from .sampler import SampleRows as SampleRows
from .scheduler import Scheduler as Scheduler
