"""Softmax attention: over a sequence, and over what is stored of a visual.

Scores, softmax and sums are float32, as `layers.product` leaves them.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fs_jax.models import layers

# Up to this length the scores of a head fit a cache, and a fused kernel's
# set-up costs more than it saves (1.5 times on a CPU at 17 words).
SHORT = 64

MASKED = -1e30  # finite: a row with nothing to see stays free of NaN


def attend(
  query: Float[Array, "B L h d"],
  key: Float[Array, "B N h d"],
  value: Float[Array, "B N h d"],
  mask: Bool[Array, "#B 1 #L N"] | None,
) -> Float[Array, "B L h d"]:
  """Softmax attention, float32 inside; fused where the device can."""
  if max(query.shape[1], key.shape[1]) > SHORT:
    if mask is None and _fuses(query):
      return jax.nn.dot_product_attention(
        query, key, value, implementation="cudnn"
      )
    return _attend_by_head(query, key, value, mask)
  scores = layers.product("blhd,bnhd->bhln", query, key)
  scores = scores / query.shape[-1] ** 0.5
  if mask is not None:
    scores = jnp.where(mask, scores, MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  mixed = layers.product("bhln,bnhd->blhd", weights, value)
  return mixed.astype(value.dtype)


def _fuses(query: Float[Array, "B L h d"]) -> bool:
  """Whether cuDNN's kernel takes the query: NVIDIA, bfloat16, small heads.

  Elsewhere `jax.nn.dot_product_attention` is plain products as well.
  """
  return (
    jax.default_backend() == "gpu"
    and jax.local_devices()[0].device_kind.startswith("NVIDIA")
    and query.dtype == jnp.bfloat16
    and query.shape[-1] % 8 == 0
    and query.shape[-1] <= 128
  )


def _attend_by_head(
  query: Float[Array, "B L h d"],
  key: Float[Array, "B N h d"],
  value: Float[Array, "B N h d"],
  mask: Bool[Array, "#B 1 #L N"] | None,
) -> Float[Array, "B L h d"]:
  """As `attend`: heads in front, keys transposed, then plain products.

  A CPU takes 2 to 3 times as long, forward and backward, where the products
  read their heads out of the middle (197 tokens, 12 heads of 64).
  """
  query = query.transpose(0, 2, 1, 3) / query.shape[-1] ** 0.5
  key = key.transpose(0, 2, 3, 1)  # [B,h,d,N]
  scores = layers.product("bhld,bhdn->bhln", query, key)
  if mask is not None:
    scores = jnp.where(mask, scores, MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  mixed = layers.product(
    "bhln,bhnd->bhld", weights, value.transpose(0, 2, 1, 3)
  )
  return mixed.astype(value.dtype).transpose(0, 2, 1, 3)


class Attention(nn.Module):
  """Multi-head attention of queries over keys."""

  heads: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L D"],
    source: Float[Array, "B N D"],
    mask: Bool[Array, "#B 1 #L N"] | None = None,
  ) -> Float[Array, "B L D"]:
    width = x.shape[-1]
    shape = (self.heads, width // self.heads)

    def project(y: Array, name: str) -> Array:  # [B,L,heads,D/heads]
      return layers.Dense(shape, self.dtype, name=name)(y)

    mixed = attend(
      project(x, "query"),
      project(source, "key"),
      project(source, "value"),
      mask,
    )
    return layers.Dense(width, self.dtype, axes=2, name="out")(mixed)


class LatentAttention(nn.Module):
  """Attention over a stored latent, which all heads share.

  Keys and values of every head are linear maps of the latent. Both maps are
  absorbed, the keys' into the query (D -> d_mem per head), the values' into the
  output: nothing is ever projected per visual token, and one visual costs two
  matrix products for all heads and words together.
  """

  heads: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L D"],
    latent: Float[Array, "B N M"],
    mask: Bool[Array, "B N"],
  ) -> Float[Array, "B L D"]:
    width, d_mem = x.shape[-1], latent.shape[-1]
    latent = latent.astype(self.dtype)
    query = layers.Dense((self.heads, d_mem), self.dtype, name="query")(x)
    scores = layers.product("blhm,bnm->blhn", query, latent)
    scores = scores / d_mem**0.5
    scores = jnp.where(mask[:, None, None, :], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    self.sow("intermediates", "attention", weights)  # only when asked for
    mixed = layers.product("blhn,bnm->blhm", weights.astype(self.dtype), latent)
    mixed = mixed.astype(self.dtype)
    return layers.Dense(width, self.dtype, axes=2, name="out")(mixed)
