"""Models by the usual names of their sizes.

`dataclasses.replace` makes variants.
"""

from fs_jax import config


def _stack(width: int, layers: int, heads: int) -> config.Stack:
  return config.Stack(width, layers, heads, 4 * width)


VISION: dict[str, config.Vision] = {
  "tiny": config.Vision(_stack(64, 2, 4), 16),
  "Ti/16": config.Vision(_stack(192, 12, 3), 16),
  "S/32": config.Vision(_stack(384, 12, 6), 32),
  "S/16": config.Vision(_stack(384, 12, 6), 16),
  "B/32": config.Vision(_stack(768, 12, 12), 32),
  "B/16": config.Vision(_stack(768, 12, 12), 16),
  "L/16": config.Vision(_stack(1024, 24, 16), 16),
  "L/14": config.Vision(_stack(1024, 24, 16), 14),
}
TEXT: dict[str, config.Text] = {
  "tiny": config.Text(_stack(64, 2, 4)),
  "Ti": config.Text(_stack(192, 12, 3)),
  "S": config.Text(_stack(384, 12, 6)),
  "B": config.Text(_stack(768, 12, 12)),
  "L": config.Text(_stack(1024, 24, 16)),
}
DECODER: dict[str, config.Stack] = {
  "tiny": _stack(64, 2, 4),
  "S": _stack(384, 6, 6),
  "B": _stack(768, 12, 12),
  "L": _stack(1024, 12, 16),
}
