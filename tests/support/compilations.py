"""How often XLA compiles, for tests that say it does not."""

import contextlib
from collections.abc import Iterator

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_seen: list[str] = []


def _listen(event: str, seconds: float, **kwargs) -> None:
  del seconds
  if event == _EVENT:
    _seen.append(str(kwargs.get("fun_name", "?")))


# Once: jax has no way to take a single listener back.
jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def none() -> Iterator[None]:
  """Fails if anything is compiled inside."""
  before = len(_seen)
  yield
  assert not _seen[before:], f"compiled: {_seen[before:]}"
