"""What each figure of a simulation means, in a sentence that goes with it.

Some figures cannot mean the same under the three kinds of capacity: an entry of
the paper's rules names places, one of the anchors' rules adds states to a tree,
and one of a store shares states with others. So a report says which it is.
"""

_ALL = {
  "requests": "Requests that were measured, those after the warm-up; every"
  " figure that does not say otherwise counts these.",
  "tokens_total": "Prompt tokens of the measured requests.",
  "hits": "Requests that resumed from a state.",
  "overlapping_requests": "Requests with at least one reusable token, whether"
  " or not a state was kept there.",
}

_SHARES = {
  "saved_fraction": "Share of tokens_total that is tokens_saved.",
  "saved_fraction_of_reusable": "Share of reusable_tokens that is"
  " tokens_saved.",
}

_LOST = {
  "expected_lost_tokens": "Tokens that the placement expected to be computed"
  " again: as it placed the entry that a prompt matched or, if it weighs all"
  " states (adaptive), before each prompt.",
  "realised_lost_tokens": "Tokens of whole blocks that these prompts computed"
  " again though they were known: misplaced, evicted or not stored.",
}

_KINDS = {
  "sequences": {
    "tokens_saved": "Tokens before the deepest place that the matched entry"
    " names within the overlap; a whole prompt may be saved.",
    "reusable_tokens": "Leading tokens that equal those of an entry held, of"
    " the same group: what one state per token would save.",
    "state_checkpoints_per_entry": "Places that the placement names for the"
    " prompt of a request, on average, within its first chunk too.",
    "state_checkpoints_peak": "Places named by all entries held at one time, at"
    " most, the warm-up included.",
  },
  "states": {
    "tokens_saved": "Tokens before the deepest state held on the path of a"
    " prompt; all of its whole blocks may be saved.",
    "reusable_tokens": "Tokens of the leading whole blocks that any earlier"
    " prompt had, however long ago: keys and values are free.",
    "state_checkpoints_per_entry": "States that a request adds, on average;"
    " those that it found on its path are not counted again.",
    "state_checkpoints_peak": "States held at one time, at most, the warm-up"
    " included.",
    "upper_bound_tokens": "What no policy saves more than with as many states,"
    " though it knew all requests to come.",
    "percent_of_upper_bound": "Share of upper_bound_tokens that is"
    " tokens_saved, in percent.",
  },
  "bytes": {
    "tokens_saved": "Tokens that prefill did not compute, as a server would"
    " serve; the last token of a prompt is always computed.",
    "reusable_tokens": "Leading tokens that the store remembers when a request"
    " comes, with or without their keys and values.",
    "state_checkpoints_per_entry": "States that the entry of a request has when"
    " the request ends, on average; shared ones count for each entry, and 0"
    " where nothing is stored.",
    "state_checkpoints_peak": "States stored between two requests, at most, the"
    " warm-up included.",
    "bytes_peak": "Bytes held as a request ends, its own included, at most, the"
    " warm-up included.",
    "state_bytes": "Bytes of one state checkpoint.",
    "page_bytes": "Bytes of the keys and values of one lattice block.",
    "evicted_states": "States dropped to make room for measured requests.",
    "refused_requests": "Requests that do not fit where all else is evicted;"
    " they count as computed.",
    "moves": "Changes of the share of states during measured requests.",
    "moved_bytes": "Bytes that a server copies for those moves.",
    "state_share": "Share of the capacity that states have in the end; none"
    " where it is undivided.",
    "reasons": "How many requests went no deeper, for each reason; refused ones"
    " have none.",
    "lost_tokens": "Reusable tokens that were computed all the same, for each"
    " of these reasons.",
    "upper_bound_tokens": "What no policy saves more than of the requests that"
    " were served, with as many bytes, undivided, though it knew all to come.",
    "percent_of_upper_bound": "Share of upper_bound_tokens that is"
    " tokens_saved, in percent.",
  },
}


def meanings_of(kind: str) -> dict[str, str]:
  """Tells what the figures of a report mean.

  Args:
    kind: What the capacity counts: "sequences", "states" or "bytes".

  Returns:
    A sentence for each figure that is counted under such a capacity.

  >>> meanings_of("states")["tokens_total"]
  'Prompt tokens of the measured requests.'
  """
  return _ALL | _KINDS[kind] | _LOST | _SHARES
