"""Tunes how hard ScaNN searches its tree: the cheapest setting for a recall.

Two knobs decide recall: how many leaves are searched, and how many of the best
rows by rough codes are scored again exactly. Either can be too low. Deeper
answers need more of both, so each of a few depths has its own setting.

Costs are counted, not timed, so that a tree gets the same settings however busy
the machine is. (ScaNN's own training, on several threads, differs in the last
digits from build to build.)
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

RECALL_DEPTHS = 10, 100  # depths at which recall is measured and reported
DEPTHS = 10, 20, 50, 100  # depths with a setting of their own
# A row scored exactly takes as long as this many codes. Measured on two cores
# at 25k x 32, 100k x 64, 50k x 768 and 100k x 256, batches of 256: 36 to 110.
ROW_COST = 64
_STEP = 2**0.25  # ratio of one number of leaves to the one before
_MULTIPLES = 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32  # of k, rows scored again

# (leaves, rows scored again) -> recall at each depth that those rows can fill.
Measure = Callable[[int, int], Mapping[int, float]]


class Tree(NamedTuple):
  """The tree to tune: its sizes decide what a setting costs."""

  size: int  # C
  leaves: int
  codes: int  # codes in all leaves; more than C if rows spill to a second leaf

  def cost(self, leaves: int, reorder: int) -> float:
    """The cost of a query, in codes read."""
    return self.codes * leaves / self.leaves + ROW_COST * reorder


def list_depths(size: int) -> tuple[int, ...]:
  """DEPTHS, cut to the number of rows."""
  return tuple(sorted({min(k, size) for k in DEPTHS}))


def tune(
  tree: Tree,
  measure: Measure,
  target: float,
  *,
  leaves: int = 0,
  reorder: int = 0,
) -> dict[str, Any]:
  """Finds the cheapest setting that reaches a recall, for each depth.

  If none reaches it, the most expensive one tried is taken. `measure` is called
  a few dozen times, cheap settings first. Recall is assumed to grow with both
  knobs.

  Args:
    tree: the tree.
    measure: the recall of (leaves, rows scored again).
    target: the recall to reach.
    leaves: a fixed number of leaves to search; 0 = tune it.
    reorder: a fixed number of rows to score again; 0 = tune it.

  Returns:
    The fields `depths`, `leaves_to_search` and `reorder` of the settings.
  """
  measured: dict[tuple[int, int], Mapping[int, float]] = {}

  def reaches(k: int, leaves: int, reorder: int) -> bool:
    if (leaves, reorder) not in measured:
      measured[leaves, reorder] = measure(leaves, reorder)
    return measured[leaves, reorder][k] >= target

  tried = [leaves] if leaves else _leaves(tree.leaves)
  chosen = []
  for k in list_depths(tree.size):
    rows = [min(max(reorder, k), tree.size)] if reorder else _rows(k, tree.size)
    enough = functools.partial(reaches, k)
    # Too few leaves for the best 10 are too few for the best 20.
    first = _first(tried, functools.partial(enough, reorder=rows[-1]))
    if first is None:
      chosen.append((tried[-1], rows[-1]))
    else:
      tried = tried[first:]
      chosen.append(_cheapest(tree, tried, rows, enough))
  return {
    "depths": list(list_depths(tree.size)),
    "leaves_to_search": leaves or [x for x, _ in chosen],
    "reorder": reorder or [x for _, x in chosen],
  }


def choose_setting(
  settings: Mapping[str, Any], size: int, k: int
) -> tuple[int, int]:
  """Leaves to search and rows to score again for k answers.

  Between two tuned depths, the deeper one's setting counts. Past the last, rows
  grow in proportion to k, and leaves as they grew from the first depth to the
  last.

  Args:
    settings: the manifest's settings.
    size: rows of the index.
    k: answers per query.
  """
  leaves, reorder = settings["leaves_to_search"], settings["reorder"]
  if "depths" not in settings:  # an index of an earlier version
    return leaves, max(reorder, 4 * k)
  tuned = settings["depths"]
  at = next((i for i, depth in enumerate(tuned) if k <= depth), -1)
  past = max(1.0, k / tuned[-1])
  if isinstance(leaves, Sequence):
    growth = 0.0
    if past > 1 and tuned[-1] > tuned[0]:
      growth = math.log(leaves[-1] / leaves[0]) / math.log(tuned[-1] / tuned[0])
    grown = math.ceil(leaves[at] * past ** max(0.0, growth))
    leaves = min(settings["leaves"], grown)
  if isinstance(reorder, Sequence):
    reorder = math.ceil(reorder[at] * past)
  return leaves, min(size, max(k, reorder))


def _cheapest(
  tree: Tree,
  leaves: Sequence[int],
  rows: Sequence[int],
  enough: Callable[[int, int], bool],
) -> tuple[int, int]:
  """The cheapest setting that is enough, from a grid of leaves and rows.

  The first number of leaves must be enough with the most rows. More leaves need
  fewer rows, so the search walks along the border: each number of leaves starts
  from the rows that were enough for the one before it.

  Args:
    tree: gives the cost.
    leaves: numbers of leaves, ascending.
    rows: numbers of rows, ascending.
    enough: whether (leaves, rows) reach the target.
  """
  best, cheaper = (leaves[0], rows[-1]), list(rows)
  for x in leaves:
    # Only settings cheaper than the best so far; none is left as soon as the
    # leaves alone cost as much.
    cheaper = [
      r for r in cheaper if (x, r) == best or tree.cost(x, r) < tree.cost(*best)
    ]
    if not cheaper:
      break
    if not enough(x, cheaper[-1]):
      continue
    low, high = 0, len(cheaper) - 1
    while low < high:
      middle = (low + high) // 2
      if enough(x, cheaper[middle]):
        high = middle
      else:
        low = middle + 1
    best = x, cheaper[low]
  return best


def _first(values: Sequence[int], good: Callable[..., bool]) -> int | None:
  """The place of the first good value, or None; all after it are good too.

  Tries cheap values first: in strides that double, then by halves.
  """
  low, at, stride = 0, 0, 1  # all before `low` are bad
  while not good(values[at]):
    if at == len(values) - 1:
      return None
    low, at, stride = at + 1, min(at + stride, len(values) - 1), 2 * stride
  while low < at:
    middle = (low + at) // 2
    if good(values[middle]):
      at = middle
    else:
      low = middle + 1
  return at


def _leaves(count: int) -> list[int]:
  """Numbers of leaves to try, from a 64th of all to all."""
  least = max(1, count // 64)
  steps = math.ceil(math.log(count / least, _STEP)) if count > least else 0
  tried = {min(count, round(least * _STEP**i)) for i in range(steps)}
  return sorted(tried | {count})


def _rows(k: int, size: int) -> list[int]:
  """Numbers of rows to try scoring again for k answers."""
  return sorted({min(size, math.ceil(m * k)) for m in _MULTIPLES})
