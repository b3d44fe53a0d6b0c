"""How hard ScaNN searches its tree: the cheapest setting that reaches a recall.

Two knobs: how many leaves are looked into, and how many of the best by rough
codes are scored again exactly. Either can be what recall lacks. Deeper answers
need more of both, so there is a setting for each of a few depths.

Settings are compared by what they cost by count, not by the clock: a tree gets
the same ones however busy the machine is. (ScaNN's own training, on several
threads, differs in the last digits from build to build.)
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

AT = 10, 100  # depths that recall is promised, measured and told for
DEPTHS = 10, 20, 50, 100  # depths that have a setting of their own
# A row scored exactly takes as long as this many codes. Measured on two cores
# at 25k x 32, 100k x 64, 50k x 768 and 100k x 256, batches of 256: 36 to 110.
ROW_COST = 64
_STEP = 2**0.25  # from one number of leaves to the next
_MULTIPLES = 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32  # rows scored again for k

# Recall at each depth that so many rows scored again can fill.
Measure = Callable[[int, int], Mapping[int, float]]


class Tree(NamedTuple):
  """What a setting is of."""

  size: int  # C
  leaves: int
  codes: int  # of all leaves; more than C where rows spill to a second one

  def cost(self, leaves: int, reorder: int) -> float:
    """Of a query, in codes."""
    return self.codes * leaves / self.leaves + ROW_COST * reorder


def depths(size: int) -> tuple[int, ...]:
  """DEPTHS as far as there are rows."""
  return tuple(sorted({min(k, size) for k in DEPTHS}))


def tune(
  tree: Tree,
  measure: Measure,
  target: float,
  *,
  leaves: int = 0,
  reorder: int = 0,
) -> dict[str, Any]:
  """Fields of the settings: for each of `depths`, the cheapest that suffices.

  Where nothing reaches the target, the most that is tried. A few dozen calls of
  `measure`, cheap ones first; recall is taken to grow with both knobs.

  Args:
    tree: to search.
    measure: recall of (leaves, rows scored again).
    target: recall.
    leaves: to look into, if that is given.
    reorder: rows scored again, if that is given.
  """
  known: dict[tuple[int, int], Mapping[int, float]] = {}

  def reaches(k: int, leaves: int, reorder: int) -> bool:
    if (leaves, reorder) not in known:
      known[leaves, reorder] = measure(leaves, reorder)
    return known[leaves, reorder][k] >= target

  tried = [leaves] if leaves else _leaves(tree.leaves)
  found = []
  for k in depths(tree.size):
    rows = [min(max(reorder, k), tree.size)] if reorder else _rows(k, tree.size)
    enough = functools.partial(reaches, k)
    # What is too few leaves for the best 10 is too few for the best 20.
    first = _first(tried, functools.partial(enough, reorder=rows[-1]))
    if first is None:
      found.append((tried[-1], rows[-1]))
    else:
      tried = tried[first:]
      found.append(_cheapest(tree, tried, rows, enough))
  return {
    "depths": list(depths(tree.size)),
    "leaves_to_search": leaves or [x for x, _ in found],
    "reorder": reorder or [x for _, x in found],
  }


def setting(settings: Mapping[str, Any], size: int, k: int) -> tuple[int, int]:
  """Leaves to look into and rows to score again for k answers.

  Between two depths that were tuned, the deeper one's; past the last, rows in
  proportion, and leaves as they grew from the first depth to the last.
  """
  leaves, reorder = settings["leaves_to_search"], settings["reorder"]
  if "depths" not in settings:  # an index made before there were any
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
  """Of a grid, ascending both ways, whose first leaves reach with all rows.

  Walks along the border of what reaches: the more leaves, the fewer rows are
  needed, so each column begins where the one before it ended.
  """
  best, kept = (leaves[0], rows[-1]), list(rows)
  for x in leaves:
    # Only what would be cheaper than the best so far; nothing of that is left
    # as soon as the leaves alone cost as much.
    kept = [
      r for r in kept if (x, r) == best or tree.cost(x, r) < tree.cost(*best)
    ]
    if not kept:
      break
    if not enough(x, kept[-1]):
      continue
    low, high = 0, len(kept) - 1
    while low < high:
      middle = (low + high) // 2
      if enough(x, kept[middle]):
        high = middle
      else:
        low = middle + 1
    best = x, kept[low]
  return best


def _first(values: Sequence[int], good: Callable[..., bool]) -> int | None:
  """Place of the first good value, all after it being good: cheap ones first.

  In strides that double, then by halves.
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
  """Numbers of leaves to try: from a 64th of them to all."""
  least = max(1, count // 64)
  steps = math.ceil(math.log(count / least, _STEP)) if count > least else 0
  tried = {min(count, round(least * _STEP**i)) for i in range(steps)}
  return sorted(tried | {count})


def _rows(k: int, size: int) -> list[int]:
  return sorted({min(size, math.ceil(m * k)) for m in _MULTIPLES})
