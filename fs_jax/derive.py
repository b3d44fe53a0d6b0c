"""Kept results, believed only where they were made from what is here now.

Whatever a program keeps to save itself work carries its contract (`files`
writes nothing without), and is found again by asking here. A result of another
contract is made anew where the program derives it, and refused by name where a
user made it.
"""

from typing import Any, Literal

from etils import epath

from fs_jax import contract as contracts
from fs_jax import files, report

# What becomes of a result that was made from something else.
# remake: said, and made anew: what a program derives by itself.
# refuse: an error that says the mend: what a user asked for by name.
# replace: made anew, damaged ones too: what a user asked for with --replace.
Stale = Literal["remake", "refuse", "replace"]


def deletable(path: epath.PathLike) -> str:
  """What to do about a derived result that is damaged."""
  return f"delete it, and it is made again: rm -r {path}"


def folder_needed(
  path: epath.PathLike,
  kind: str,
  contract: contracts.Contract,
  *,
  stale: Stale = "remake",
  hashes: bool = True,
  mend: str = "",
) -> bool:
  """Whether a folder has to be made: it is missing, or of another contract.

  Args:
    path: of the folder.
    kind: of its manifest.
    contract: all parts that it would be made from now.
    stale: what becomes of one made from something else.
    hashes: False compares the sizes of its files only.
    mend: said where it is refused; of what a program derives by itself, that
      it may be deleted.

  Raises:
    ValueError: it is damaged, or refused.
  """
  path = epath.Path(path)
  if stale == "remake":
    mend = mend or deletable(path)
  if not (path / files.MANIFEST).exists():
    return True
  try:
    manifest = files.read_manifest(path, kind, hashes=hashes, mend=mend)
  except ValueError:
    if stale == "replace":
      return True
    raise
  return _stale(path, manifest.get("contract", {}), contract, stale, mend)


def record(
  path: epath.PathLike, kind: str, contract: contracts.Contract
) -> dict[str, Any] | None:
  """A derived record made from `contract`; None where it has to be made."""
  path = epath.Path(path)
  if not path.exists():
    return None
  try:
    values = files.read_record(path, kind, mend="")
  except ValueError as error:  # of an earlier version, or cut: derived again
    report.say(f"made again: {str(error).rstrip('. ')}")
    return None
  if _stale(path, values["contract"], contract, "remake", ""):
    return None
  return values


def _stale(
  path: epath.Path,
  theirs: contracts.Contract,
  ours: contracts.Contract,
  stale: Stale,
  mend: str,
) -> bool:
  differ = contracts.difference(theirs, ours)
  if differ is None:
    return False
  if stale == "refuse":
    contracts.check_all(
      ours,
      theirs,
      ours_name="what is asked for",
      theirs_name=str(path),
      mend=mend,
    )
    # What is asked for agrees, and it was made from more than that.
    raise ValueError(
      f"{path}: must be made from what is asked for alone; got another "
      f"{differ}. {mend}"
    )
  report.say(f"made again: {path} was made from another {differ}")
  return True
