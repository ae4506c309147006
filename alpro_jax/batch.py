"""The contract between the input pipeline and the training step."""

from typing import Any, NamedTuple

import flax
import jax

NO_TEXT = -1  # The caption_id of a picture that stands alone.


class SpecialTokens(NamedTuple):
  """Ids of the five tokens that every tokenizer here must have."""

  pad: int
  unk: int
  cls: int
  sep: int
  mask: int


@flax.struct.dataclass
class VideoTextBatch:
  """B video-text pairs as they travel to the devices.

  Pixels stay uint8 and text stays ids: normalisation, masking and the crop of
  a region happen inside the step, from the step's key.
  """

  # uint8[B, T, H, W, 3], RGB in 0..255; or what a frozen video encoder made of them:
  # tokens of frames f[B, T, D] or None, and of the clip f[B, S, D]; see train/features.py.
  video: Any
  text_ids: jax.Array  # int32[B, L], position 0 is the class token.
  text_mask: jax.Array  # bool[B, L], True on real tokens, class and separator too.
  video_id: jax.Array  # int32[B], equal for rows that show the same video.
  caption_id: jax.Array  # int32[B], equal for rows whose text_ids are equal; or NO_TEXT.
  answer: jax.Array  # int32[B], index in the list of answers; -1: none, or not in it.
  # int32[B, M], texts as a text tower of its own reads them, M is 0 without; or what a frozen
  # one made of them, f[B, D].
  tower_ids: jax.Array
  still: jax.Array  # bool[B], True for a photo, or one frame of a clip, repeated over time.
  valid: jax.Array  # bool[B], False on rows that only pad an evaluation batch.
