"""Replay of request streams against policies, without device arrays."""

from .capacity import Capacity as Capacity
from .capacity import parse_capacity as parse_capacity
from .paper_rules import Decision as Decision
from .paper_rules import Lookup as Lookup
from .paper_rules import look_up as look_up
from .paper_rules import replay_decisions as replay_decisions
from .plots import plot_reports as plot_reports
from .plots import write_json as write_json
from .report import Report as Report
from .simulate import EVICTIONS as EVICTIONS
from .simulate import simulate as simulate
from .store_rules import Sizes as Sizes
