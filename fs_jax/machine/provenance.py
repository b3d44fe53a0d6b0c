"""What stored results were made from: compared before a result is used.

A contract has parts, each a flat dict of scalars; parts of the same name are
compared. Whatever a program stores to save work carries the contract of all
that it was made from (`manifest` writes nothing without one), and is looked up
here. A result of another contract is made again if the program derives it, and
refused by name if a user made it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from etils import epath

from fs_jax.machine import console
from fs_jax.machine import manifest as manifests

Part = dict[str, Any]  # flat: str, int, float, bool
Contract = Mapping[str, Mapping[str, Any]]


def digest_json(values: object) -> str:
  """SHA-256 of JSON values; the order of keys does not matter."""
  text = json.dumps(values, sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def difference(ours: Contract, theirs: Contract) -> str | None:
  """The first field in which two contracts differ: "slow.digest: 'a' and 'b'".

  A part or a field that only one of them has counts; None if they are equal.
  """
  for part in [*ours, *(p for p in theirs if p not in ours)]:
    left, right = ours.get(part, {}), theirs.get(part, {})
    for field in [*left, *(f for f in right if f not in left)]:
      if left.get(field) != right.get(field):
        values = f"{_short(left.get(field))} and {_short(right.get(field))}"
        return f"{part}.{field}: {values}"
  return None


def check(
  part: str,
  ours: Mapping[str, Any],
  theirs: Mapping[str, Any],
  *,
  ours_name: str,
  theirs_name: str,
  mend: str,
) -> None:
  """Refuses a part of two contracts that differs.

  Raises:
    ValueError: names the first field that differs, both values, and `mend`.
  """
  for field in [*ours, *(f for f in theirs if f not in ours)]:
    left, right = ours.get(field), theirs.get(field)
    if left != right:
      raise ValueError(
        f"{part}.{field}: {ours_name} and {theirs_name} must agree; got "
        f"{left!r} ({ours_name}) and {right!r} ({theirs_name}). {mend}"
      )


def check_all(
  ours: Contract | None,
  theirs: Contract,
  *,
  ours_name: str,
  theirs_name: str,
  mend: str,
) -> None:
  """Applies `check` to every part of `ours`; None checks nothing.

  Raises:
    ValueError: as `check`, or `theirs` lacks a part.
  """
  names = {"ours_name": ours_name, "theirs_name": theirs_name}
  for part, fields in (ours or {}).items():
    if part not in theirs:
      raise ValueError(
        f"{part}: {theirs_name} must have this part of the contract; got "
        f"{', '.join(theirs) or 'none'}. {mend}"
      )
    check(part, fields, theirs[part], **names, mend=mend)


class Opened(NamedTuple):
  """A folder whose manifest and contract were checked."""

  path: epath.Path  # on this disk if a copy was asked for
  manifest: dict[str, Any]


def open_folder(
  folder: epath.PathLike,
  kind: str,
  expected: Contract | None = None,
  *,
  hashes: bool = True,
  copy: bool = True,
  mend: str = "",
) -> Opened:
  """Checks a folder of results before anything in it is used.

  Args:
    folder: the folder; one in an object store is copied to this disk first.
    kind: the manifest's kind.
    expected: parts of the contract that must agree.
    hashes: False checks the sizes of files, not their contents.
    copy: False reads an object store in place.
    mend: the fix that errors suggest; if "", the program that makes the kind,
      where files are missing or damaged.

  Raises:
    FileNotFoundError: no such folder, or one that was never finished.
    ValueError: damaged, or of another contract.
  """
  path = manifests.local_copy(folder) if copy else epath.Path(folder)
  manifest = manifests.read_manifest(path, kind, hashes=hashes, mend=mend)
  check_all(
    expected,
    manifest["contract"],
    ours_name="what is asked for",
    theirs_name=f"{kind} {epath.Path(folder)}",
    mend=mend,
  )
  return Opened(path, manifest)


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else f"{text[:18]}...{text[-4:]}"


# What happens to a result that was made from something else.
# remake: make it again, and say so: the program derived it by itself.
# refuse: raise an error that says what to do: a user named it.
# replace: make it again, even a damaged one: a user gave --replace.
Stale = Literal["remake", "refuse", "replace"]


def how_to_remake(path: epath.PathLike) -> str:
  """What to do about a damaged result that a program derived."""
  return f"delete it, and it is made again: rm -r {path}"


def folder_needed(
  path: epath.PathLike,
  kind: str,
  contract: Contract,
  *,
  stale: Stale = "remake",
  hashes: bool = True,
  mend: str = "",
) -> bool:
  """Whether a folder must be made: it is missing, or has another contract.

  Args:
    path: the folder.
    kind: its manifest's kind.
    contract: all parts that it would be made from now.
    stale: what happens to a folder made from something else.
    hashes: False compares the sizes of its files only.
    mend: what errors tell the user to do; for stale="remake" by default, that
      the folder may be deleted.

  Raises:
    ValueError: it is damaged, or refused.
  """
  path = epath.Path(path)
  if stale == "remake":
    mend = mend or how_to_remake(path)
  if not (path / manifests.MANIFEST).exists():
    return True
  try:
    manifest = manifests.read_manifest(path, kind, hashes=hashes, mend=mend)
  except ValueError:
    if stale == "replace":
      return True
    raise
  return _stale(path, manifest.get("contract", {}), contract, stale, mend)


def find_record(
  path: epath.PathLike, kind: str, contract: Contract
) -> dict[str, Any] | None:
  """Reads a derived record; None if it must be made from `contract`."""
  path = epath.Path(path)
  if not path.exists():
    return None
  try:
    values = manifests.read_record(path, kind, mend="")
  except ValueError as error:  # an earlier version's, or cut short
    console.say(f"made again: {str(error).rstrip('. ')}")
    return None
  if _stale(path, values["contract"], contract, "remake", ""):
    return None
  return values


def _stale(
  path: epath.Path,
  theirs: Contract,
  ours: Contract,
  stale: Stale,
  mend: str,
) -> bool:
  field = difference(theirs, ours)
  if field is None:
    return False
  if stale == "refuse":
    check_all(
      ours,
      theirs,
      ours_name="what is asked for",
      theirs_name=str(path),
      mend=mend,
    )
    # All that is asked for agrees, but it was made from more than that.
    raise ValueError(
      f"{path}: must be made from what is asked for alone; got another "
      f"{field}. {mend}"
    )
  console.say(f"made again: {path} was made from another {field}")
  return True
