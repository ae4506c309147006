"""The contract between the input pipeline and the training step."""

from typing import NamedTuple

import flax
import jax


class SpecialTokens(NamedTuple):
  """Ids of the five tokens that every tokenizer here must have."""

  pad: int
  unk: int
  cls: int
  sep: int
  mask: int


@flax.struct.dataclass
class VideoTextBatch:
  """A batch of video-text pairs as it travels to the devices.

  Pixels stay uint8 and text stays ids: normalisation, masking and the crop of
  a region happen inside the step, from the step's key.

  Attributes:
    video: uint8[B, T, H, W, 3], RGB in 0..255.
    text_ids: int32[B, L], position 0 is the class token.
    text_mask: bool[B, L], True on real tokens, class and separator included.
    video_id: int32[B], equal for rows that show the same video.
    caption_id: int32[B], equal for rows whose text_ids are equal.
    answer: int32[B], the place of a question's answer in the list of answers,
      -1 where there is none or it is not in the list.
    still: bool[B], True for a photo repeated over time.
    valid: bool[B], False on rows that only pad an evaluation batch.
  """

  video: jax.Array
  text_ids: jax.Array
  text_mask: jax.Array
  video_id: jax.Array
  caption_id: jax.Array
  answer: jax.Array
  still: jax.Array
  valid: jax.Array
