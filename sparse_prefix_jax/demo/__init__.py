"""The demo: one stream, one model, every strategy; what it runs and shows."""

from .job import run_demo as run_demo
from .results import Result as Result
from .strategy import Strategy as Strategy
from .strategy import strategies as strategies
