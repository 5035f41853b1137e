"""The demo: one stream, one model, every strategy; what it runs and shows."""

from .job import run as run
from .results import Result as Result
from .strategies import Strategy as Strategy
from .strategies import strategies as strategies
