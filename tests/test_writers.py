"""One way to keep a result: nothing writes files past it.

`manifest.write_manifest` and `manifest.write_record` refuse what does not say
what it was made from. Whatever else writes is listed here, with what it writes.
"""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent

# Writers that give a contract to whatever they write.
CONTRACTED = {"write_manifest", "write_record"}
# Writers inside a folder that `write_manifest` closes.
INSIDE = {
  "gallery/corpus.py": {"write_ids", "write_vectors"},
  "evaluate/studies/answers.py": {"rank"},
  "gallery/scann.py": {"_write"},
  "train/clusters.py": {"mine", "judge"},
  "search/packed.py": {"write", "_thumbnail"},
  "runs/stages.py": {"save_part"},
  "gallery/memories.py": {"append", "_append_mask", "_create"},
}
# What is no result found again by name.
OTHERS = {
  "evaluate/page/sheet.py": {"draw": "a picture for people"},
  "evaluate/studies/evidence.py": {
    "measure": "tables for people, never read back"
  },
  "evaluate/page/page.py": {
    "write": "a page for people",
    "_image": "a picture in it",
  },
  "train/plan/table.py": {
    "_show": "a table in a guide",
    "_write": "a plan for people",
  },
  "runs/journal.py": {
    "__init__": "metrics, dropped past the checkpoint",
    "write": "metrics",
  },
  "runs/stages.py": {
    "_begin": "the config, compared before a run goes on",
    "finish": "says that a stage is done",
    "describe": "parameters for people",
  },
  "train/train.py": {"_write_card": "a model card for people"},
  "evaluate/studies/study.py": {
    "begin": "what a study began with, compared by itself"
  },
  "data/tokenizer.py": {"save": "the vocabulary, whose hash is in contracts"},
}
# Modules that own a format of their own.
OWNERS = {
  "machine/files.py": "where all is written",
  "machine/manifest.py": "which refuses what has no contract",
  "runs/checkpoint.py": "orbax, with sums of its arrays",
  "runs/uploads.py": "copies of logs in an object store",
  "machine/processes.py": "locks",
  "machine/compile_cache.py": "jax keys its programs itself",
  "data/prepare.py": "TFDS keys its datasets by version and config",
}
WRITES = {
  *("write_bytes", "write_text", "write_json", "write_array", "write_to"),
  *("save", "savez", "tofile", "dump", "serialize", "touch", "mkstemp"),
}
SAVERS = {
  "corpora",
  "corpus",
  "fusion",
  "saved",
  "tokenizer",
}  # whose `save` is listed by itself
OPENED = ("w", "a", "x", "+")


def writes(node: ast.Call) -> bool:
  """Whether a call writes a file, as far as its name tells."""
  name = getattr(node.func, "attr", getattr(node.func, "id", ""))
  if name == "open":
    modes = [*node.args, *(k.value for k in node.keywords)]
    return any(
      isinstance(m, ast.Constant)
      and isinstance(m.value, str)
      and any(x in m.value for x in OPENED)
      and len(m.value) <= 3
      for m in modes
    )
  if name == "save":
    owner = getattr(node.func, "value", None)
    return owner is not None and getattr(owner, "id", "") not in SAVERS
  return name in WRITES


def functions(tree: ast.AST):
  """(name, calls) of every function; a call belongs to the outermost one."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      yield node.name, [x for x in ast.walk(node) if isinstance(x, ast.Call)]
    else:
      yield from functions(node)


def found() -> dict[tuple[str, str], int]:
  """Every function of the library that writes, with a line of it."""
  writers = {}
  for path in sorted((ROOT / "fs_jax").rglob("*.py")):
    module = str(path.relative_to(ROOT / "fs_jax"))
    if module in OWNERS:
      continue
    for name, calls in functions(ast.parse(path.read_text())):
      lines = [call.lineno for call in calls if writes(call)]
      if lines:
        writers[module, name] = lines[0]
  return writers


def test_nothing_writes_a_kept_file_past_the_one_way():
  known = {
    (module, name)
    for table in (INSIDE, OTHERS)
    for module, names in table.items()
    for name in names
  }
  past = {
    f"fs_jax/{module}:{line} {name}"
    for (module, name), line in found().items()
    if (module, name) not in known
  }
  assert not past, "\n".join(sorted(past))
