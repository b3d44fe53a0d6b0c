"""open_clip on PyTorch, the peer of `launch.bench train`: a separate program.

It runs in an environment that has torch and open_clip_torch but no JAX (`make
bench-train` builds one), and imports nothing of this project. Every line on
stdin is a request, every line on stdout its answer, both JSON:

  {"do": "make", ...sizes}               the facts: versions, parameters, FLOPs
  {"do": "run", "what": X, "runs": n}    {"seconds": [n of them]}

An error is {"error": "..."}. What libraries print goes to stderr.
"""

import contextlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

STAND_IN = (
  "torchvision did not import: a stand-in without contents took its place, "
  "which no part of the measured model uses"
)


def main() -> None:
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what libraries print must not look like an answer
  peer: Peer | None = None
  for line in sys.stdin:
    request = json.loads(line)
    do = request.pop("do")
    try:
      if do == "make":
        peer = Peer(**request)
        answer = peer.facts()
      elif peer is None:
        raise ValueError("do: 'make' comes first; got 'run'. send 'make'")
      else:
        answer = {"seconds": peer.run(**request)}
    except Exception as error:
      answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)


def import_open_clip() -> tuple[Any, str]:
  """Returns the package, and a note if a stand-in replaces torchvision.

  open_clip needs torchvision to prepare pictures. If torchvision has no build
  for this torch, its import fails with torch's own RuntimeError.
  """
  try:
    importlib.import_module("torchvision")
    note = ""
  except (ImportError, RuntimeError):
    for name in [n for n in sys.modules if n.startswith("torchvision")]:
      del sys.modules[name]
    for name in (
      "",
      ".transforms",
      ".transforms.functional",
      ".ops",
      ".ops.misc",
    ):
      sys.modules[f"torchvision{name}"] = mock.MagicMock()
    # timm needs torchvision too; open_clip goes without timm.
    sys.modules["timm"] = None  # type: ignore[assignment]
    note = STAND_IN
  return importlib.import_module("open_clip"), note


class Peer:
  """The model, its step and pieces of it, each as a call without arguments."""

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

    self.torch, (self.clip, self.note) = torch, import_open_clip()
    self.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    # As in JAX: float32 products in TF32, where a GPU has it.
    torch.set_float32_matmul_precision("high")
    self.dtype = getattr(torch, compute)
    # The tanh form of gelu, and no norm before the first block: as Fast.
    act = {"approximate": "tanh"}
    self.model = self.clip.CLIP(
      embed,
      _vision_config(image, patch, vision) | {"act_kwargs": act},
      _text_config(length, vocabulary, text) | {"act_kwargs": act},
      init_logit_scale=math.log(scale),
      cast_dtype=None if compute == "float32" else self.dtype,
    ).to(self.device)
    # A step under autocast, as open_clip's own: parameters stay float32.
    self.call = torch.compile(self.model) if compiled else self.model
    self.compiled = compiled
    self.loss = self.clip.ClipLoss()
    self.pixels = torch.randn(batch, 3, image, image, device=self.device)
    self.ids = torch.randint(1, vocabulary, (batch, length), device=self.device)
    self.optimizer = self._make_optimizer(learning_rate, (b1, b2), weight_decay)
    self.pieces = self._pieces(batch, vision, embed)

  def _make_optimizer(
    self, learning_rate: float, betas: tuple[float, float], weight_decay: float
  ) -> Any:
    """AdamW that decays matrices only."""
    parameters = list(self.model.parameters())
    matrices = [p for p in parameters if p.ndim >= 2]
    others = [p for p in parameters if p.ndim < 2]
    return self.torch.optim.AdamW(
      [
        {"params": others, "weight_decay": 0.0},
        {"params": matrices, "weight_decay": weight_decay},
      ],
      lr=learning_rate,
      betas=betas,
      fused=True,  # the fastest it has, on a CPU too
    )

  def facts(self) -> dict[str, Any]:
    return {
      "versions": f"open_clip {self.clip.__version__}, torch "
      f"{self.torch.__version__}{', compiled' if self.compiled else ''}",
      "device": self.device,
      "threads": self.torch.get_num_threads(),
      "parameters": sum(p.numel() for p in self.model.parameters()),
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
    if self.device == "cuda":
      self.torch.cuda.synchronize()

  def _flops(self) -> float:
    """FLOPs of a step: torch counts its matrix products while they run."""
    from torch.nn import attention
    from torch.utils import flop_counter

    compiled, self.call = self.call, self.model  # only eager calls are counted
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
    with self.torch.autocast(self.device, self.torch.bfloat16, enabled=cast):
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

  def _pieces(
    self, batch: int, vision: dict[str, int], embed: int
  ) -> dict[str, Callable[[], Any]]:
    """The step, towers, pieces of a vision block, and what surrounds blocks."""
    model, torch = self.model, self.torch
    conv, lookup = model.visual.conv1, model.token_embedding
    sides = [self._random(batch, embed).float().detach() for _ in range(2)]
    sides = [torch.nn.functional.normalize(x).requires_grad_() for x in sides]
    scale = torch.tensor(14.0, device=self.device, requires_grad=True)
    return {
      "forward": self._forward,
      "gradient": self._gradient,
      "step": self._step,
      "optimiser": self._update,
      "vision": self._with_gradients(
        lambda: model.encode_image(self.pixels, normalize=True),
        model.visual.parameters(),
      ),
      "text": self._with_gradients(
        lambda: model.encode_text(self.ids, normalize=True),
        [
          *model.transformer.parameters(),
          *model.ln_final.parameters(),
          lookup.weight,
          model.positional_embedding,
          model.text_projection,
        ],
      ),
      **self._block(batch, vision),
      "patches": self._with_gradients(
        lambda: conv(self.pixels), conv.parameters()
      ),
      "lookup": self._with_gradients(
        lambda: lookup(self.ids), lookup.parameters()
      ),
      "loss": self._with_gradients(
        lambda: self.loss(*sides, scale), [*sides, scale]
      ),
    }

  def _block(
    self, batch: int, vision: dict[str, int]
  ) -> dict[str, Callable[[], Any]]:
    """The pieces of a vision block, on random activations."""
    block = self.model.visual.transformer.resblocks[0]
    width, heads = vision["width"], vision["heads"]
    tokens = self.model.visual.positional_embedding.shape[0]
    x = self._random(batch, tokens, width)
    hidden = self._random(batch, tokens, 4 * width)
    qkv = [self._random(batch, heads, tokens, width // heads) for _ in range(3)]
    attend = self.torch.nn.functional.scaled_dot_product_attention

    def module(fn: Callable[..., Any], module: Any) -> Callable[[], Any]:
      return self._with_gradients(lambda: fn(x), [x, *module.parameters()])

    return {
      "product": module(block.mlp.c_fc, block.mlp.c_fc),
      "attend": self._with_gradients(lambda: attend(*qkv), qkv),
      "norm": module(block.ln_1, block.ln_1),
      "gelu": self._with_gradients(lambda: block.mlp.gelu(hidden), [hidden]),
      "mlp": module(block.mlp, block.mlp),
      "attention": module(block.attention, block.attn),
    }

  def _random(self, *shape: int) -> Any:
    x = self.torch.randn(*shape, device=self.device, dtype=self.dtype)
    return x.requires_grad_()

  def _with_gradients(
    self, forward: Callable[[], Any], inputs: Iterable[Any]
  ) -> Callable[[], Any]:
    """A call of `forward` and its gradients, for one fixed cotangent."""
    inputs, cotangent = list(inputs), None

    def run() -> Any:
      nonlocal cotangent
      with self._casting():
        out = forward()
      if cotangent is None:
        cotangent = self.torch.randn_like(out)
      return out, self.torch.autograd.grad(out, inputs, cotangent)

    return run


def _vision_config(
  image: int, patch: int, stack: dict[str, int]
) -> dict[str, Any]:
  return {
    "image_size": image,
    "patch_size": patch,
    "width": stack["width"],
    "layers": stack["layers"],
    "head_width": stack["width"] // stack["heads"],
    "mlp_ratio": stack["hidden"] / stack["width"],
    "no_ln_pre": True,
  }


def _text_config(
  length: int, vocabulary: int, stack: dict[str, int]
) -> dict[str, Any]:
  return {
    "context_length": length,
    "vocab_size": vocabulary,
    "width": stack["width"],
    "layers": stack["layers"],
    "heads": stack["heads"],
    "mlp_ratio": stack["hidden"] / stack["width"],
  }


if __name__ == "__main__":
  main()
