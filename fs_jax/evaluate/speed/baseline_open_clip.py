"""open_clip on PyTorch, the peer of `launch.bench train`: a program of its own.

It runs in an environment that has torch and open_clip_torch and no JAX (`make
bench-train` makes one), and imports nothing of this project. Every line on
stdin is a request, every line on stdout its answer, both JSON:

  {"do": "make", ...sizes}               what it is: versions, parameters, FLOPs
  {"do": "run", "what": X, "runs": n}    {"seconds": [n of them]}

What went wrong is {"error": "..."}. Libraries that print reach stderr only.
"""

import contextlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

STAND_IN = (
  "torchvision did not import: a stand-in without contents took its place, "
  "which no part of the measured model uses"
)


def main() -> None:
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what libraries print is no answer
  made: Peer | None = None
  for line in sys.stdin:
    request = json.loads(line)
    what = request.pop("do")
    try:
      if what == "make":
        made = Peer(**request)
        answer = made.facts()
      elif made is None:
        raise ValueError("do: 'make' comes first; got 'run'. send 'make'")
      else:
        answer = {"seconds": made.run(**request)}
    except Exception as error:
      answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)


def open_clip() -> tuple[Any, str]:
  """The package, and a note on what stands in for torchvision, if anything.

  open_clip needs torchvision to prepare pictures. Where torch is a build that
  torchvision has none for, its import fails, with torch's own RuntimeError.
  """
  try:
    importlib.import_module("torchvision")
    note = ""
  except (ImportError, RuntimeError):
    for name in [n for n in sys.modules if n.startswith("torchvision")]:
      del sys.modules[name]
    parts = ("", ".transforms", ".transforms.functional", ".ops", ".ops.misc")
    for part in parts:
      sys.modules[f"torchvision{part}"] = mock.MagicMock()
    sys.modules["timm"] = None  # type: ignore[assignment]  # it wants it too
    note = STAND_IN
  return importlib.import_module("open_clip"), note


class Peer:
  """The model, its step and pieces of it, each a call without arguments."""

  def __init__(
    self,
    *,
    batch: int,
    image: int,
    patch: int,
    vision: dict[str, int],
    text: dict[str, int],
    embed: int,
    vocabulary: int,
    length: int,
    scale: float,
    compute: str,
    learning_rate: float,
    b1: float,
    b2: float,
    weight_decay: float,
    compiled: bool,
  ):
    import torch

    self.torch, (self.clip, self.note) = torch, open_clip()
    self.on = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    # As JAX: products of float32 in TF32, where a GPU has it.
    torch.set_float32_matmul_precision("high")
    self.dtype = getattr(torch, compute)
    # The tanh form of gelu, and no norm before the first block: as Fast.
    act = {"approximate": "tanh"}
    model = self.clip.CLIP(
      embed,
      {
        "image_size": image,
        "patch_size": patch,
        "width": vision["width"],
        "layers": vision["layers"],
        "head_width": vision["width"] // vision["heads"],
        "mlp_ratio": vision["hidden"] / vision["width"],
        "no_ln_pre": True,
        "act_kwargs": act,
      },
      {
        "context_length": length,
        "vocab_size": vocabulary,
        "width": text["width"],
        "layers": text["layers"],
        "heads": text["heads"],
        "mlp_ratio": text["hidden"] / text["width"],
        "act_kwargs": act,
      },
      init_logit_scale=math.log(scale),
      cast_dtype=None if compute == "float32" else self.dtype,
    ).to(self.on)
    self.model = model
    # A step under autocast, as open_clip's own: parameters stay float32.
    self.call = torch.compile(model) if compiled else model
    self.compiled = compiled
    self.loss = self.clip.ClipLoss()
    self.pixels = torch.randn(batch, 3, image, image, device=self.on)
    self.ids = torch.randint(1, vocabulary, (batch, length), device=self.on)
    whole = [p for p in model.parameters() if p.ndim >= 2]
    small = [p for p in model.parameters() if p.ndim < 2]
    self.optimizer = torch.optim.AdamW(
      [
        {"params": small, "weight_decay": 0.0},
        {"params": whole, "weight_decay": weight_decay},
      ],
      lr=learning_rate,
      betas=(b1, b2),
      fused=True,  # the fastest it has, on a CPU too
    )
    self.pieces = self._pieces(batch, vision, embed)

  def facts(self) -> dict[str, Any]:
    model = self.model
    return {
      "versions": f"open_clip {self.clip.__version__}, torch "
      f"{self.torch.__version__}{', compiled' if self.compiled else ''}",
      "device": self.on,
      "threads": self.torch.get_num_threads(),
      "parameters": sum(p.numel() for p in model.parameters()),
      "flops": self._flops(),
      "note": self.note,
    }

  def run(self, what: str, runs: int) -> list[float]:
    """Seconds of each of `runs` calls."""
    call = self.pieces[what]
    return [self._seconds(call) for _ in range(runs)]

  def _seconds(self, call: Callable[[], Any]) -> float:
    self._wait()
    began = time.perf_counter()
    call()
    self._wait()
    return time.perf_counter() - began

  def _wait(self) -> None:
    if self.on == "cuda":
      self.torch.cuda.synchronize()

  def _flops(self) -> float:
    """Of a step, as torch counts its matrix products while they run."""
    from torch.nn import attention
    from torch.utils import flop_counter

    compiled, self.call = self.call, self.model  # it counts what runs eagerly
    with (
      # The fused kernel of a CPU has no count; the plain one has the same.
      attention.sdpa_kernel(attention.SDPBackend.MATH),
      flop_counter.FlopCounterMode(display=False) as counter,
    ):
      self._gradient()
    self.call = compiled
    return float(counter.get_total_flops())

  @contextlib.contextmanager
  def _casting(self) -> Iterator[None]:
    cast = self.dtype != self.torch.float32
    with self.torch.autocast(self.on, self.torch.bfloat16, enabled=cast):
      yield

  def _loss(self) -> Any:
    with self._casting():
      return self.loss(*self.call(self.pixels, self.ids))

  def _forward(self) -> float:
    with self.torch.no_grad():
      return self._loss().item()

  def _gradient(self) -> Any:
    self.optimizer.zero_grad()
    loss = self._loss()
    loss.backward()
    return loss

  def _step(self) -> float:
    loss = self._gradient()
    self.optimizer.step()
    with self.torch.no_grad():
      self.model.logit_scale.clamp_(0, math.log(100))
    return loss.item()

  def _update(self) -> None:
    if self.model.logit_scale.grad is None:
      self._gradient()
    self.optimizer.step()

  def _pieces(self, batch: int, vision: dict[str, int], embed: int) -> dict:
    """Of a vision block, and what is around the blocks; forward, backward."""
    model, torch = self.model, self.torch
    block = model.visual.transformer.resblocks[0]
    width, heads = vision["width"], vision["heads"]
    tokens = model.visual.positional_embedding.shape[0]

    def floats(*shape: int) -> Any:
      x = torch.randn(*shape, device=self.on, dtype=self.dtype)
      return x.requires_grad_()

    x, wide = floats(batch, tokens, width), floats(batch, tokens, 4 * width)
    qkv = [floats(batch, heads, tokens, width // heads) for _ in range(3)]
    rows = [floats(batch, embed).float().detach() for _ in range(2)]
    rows = [torch.nn.functional.normalize(r).requires_grad_() for r in rows]
    scale = torch.tensor(14.0, device=self.on, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    conv, lookup = model.visual.conv1, model.token_embedding
    return {
      "forward": self._forward,
      "gradient": self._gradient,
      "step": self._step,
      "optimiser": self._update,
      "vision": self._both(
        lambda: model.encode_image(self.pixels, normalize=True),
        model.visual.parameters(),
      ),
      "text": self._both(
        lambda: model.encode_text(self.ids, normalize=True),
        [
          *model.transformer.parameters(),
          *model.ln_final.parameters(),
          *(lookup.weight, model.positional_embedding, model.text_projection),
        ],
      ),
      "product": self._both(
        lambda: block.mlp.c_fc(x), [x, *block.mlp.c_fc.parameters()]
      ),
      "attend": self._both(lambda: attend(*qkv), qkv),
      "norm": self._both(lambda: block.ln_1(x), [x, *block.ln_1.parameters()]),
      "gelu": self._both(lambda: block.mlp.gelu(wide), [wide]),
      "mlp": self._both(lambda: block.mlp(x), [x, *block.mlp.parameters()]),
      "attention": self._both(
        lambda: block.attention(x), [x, *block.attn.parameters()]
      ),
      "patches": self._both(lambda: conv(self.pixels), conv.parameters()),
      "lookup": self._both(lambda: lookup(self.ids), lookup.parameters()),
      "loss": self._both(lambda: self.loss(*rows, scale), [*rows, scale]),
    }

  def _both(self, forward: Callable[[], Any], by: Any) -> Callable[[], Any]:
    """A value and its gradients by all of `by`, of one fixed cotangent."""
    by, pull = list(by), None

    def run() -> Any:
      nonlocal pull
      with self._casting():
        out = forward()
      if pull is None:
        pull = self.torch.randn_like(out)
      return out, self.torch.autograd.grad(out, by, pull)

    return run


if __name__ == "__main__":
  main()
