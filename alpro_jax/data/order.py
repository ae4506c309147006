"""What every step reads: numbers that follow from the seed and the step alone.

No file position, no shuffle buffer and no number of hosts comes in, so a run
that resumes at a step reads what it would have read.
"""

import functools
import hashlib
from typing import NamedTuple

import numpy as np

from alpro_jax.batch import NO_TEXT
from alpro_jax.data.mixture import Source, TooManyBroken

# Streams of random numbers: one for each kind of choice.
SOURCE, SHUFFLE, CAPTION, PIXELS, VIDEO, FRAME, ALONE = range(1, 8)
BLOCK = 4096  # Steps whose sources are drawn at once.


class Plan(NamedTuple):
  """What the rows of a host hold at one step."""

  source: Source
  epoch: np.ndarray  # int64[b], how often the source had begun anew.
  records: np.ndarray  # int64[b].
  texts: np.ndarray  # int64[b], indices of the source's texts.
  seeds: np.ndarray  # int64[b, 2], of the pixels.
  frame: np.ndarray  # bool[b], one frame is shown in place of the clip.
  alone: np.ndarray  # bool[b], a picture without its text.


class Order:
  """Says what every step reads.

  Args:
    sources: of batches.
    seed: of the run.
    batch_size: global.
    single_frames: share of the examples of which one frame is shown.
    without_text: share of the photos and single frames that come without their text.
  Raises:
    ValueError: for what is no share.
  """

  def __init__(self, sources, seed, batch_size, single_frames=0.0, without_text=0.0):
    for name, share in (('single_frames', single_frames), ('without_text', without_text)):
      if not 0 <= share <= 1:
        raise ValueError(f'config.data.{name}={share} must be a share, from 0 to 1.')
    self._single_frames, self._without_text = single_frames, without_text
    self._sources = sources
    self._seed = seed
    self._batch_size = batch_size
    # Steps that are worth reading beside each other; see PreparedDataset.
    self.at_once = max(source.dataset.at_once for source in sources)
    self._shuffled = functools.lru_cache(maxsize=8)(self._shuffle)
    self._block = functools.lru_cache(maxsize=2)(self._choose_block)

  def plan(self, step, rows):
    """Returns the Plan of a step for a slice of the global batch."""
    number, batches_before = self._choice(step)
    source = self._sources[number]
    position = batches_before * self._batch_size + np.arange(rows.start, rows.stop)
    epoch, offset = np.divmod(position, len(source))
    examples = np.empty_like(position)
    for one in np.unique(epoch):
      now = epoch == one
      examples[now] = _next_readable(source, self._shuffled(number, int(one)), offset[now])
    first = source.first[examples]
    count = source.first[examples + 1] - first
    key = self._seed, source.key
    drawn = hash64(*key, CAPTION, epoch, source.keys[examples]) % count.astype(np.uint64)
    pixels = hash64(*key, PIXELS, epoch, source.keys[examples]).view(np.int64)
    seeds = np.stack([pixels, np.zeros_like(pixels)], 1)

    def draw(stream, share):
      return _uniform(hash64(*key, stream, epoch, source.keys[examples])) < share

    records = source.records[examples]
    frame, alone = draw(FRAME, self._single_frames), draw(ALONE, self._without_text)
    if self._without_text:
      known = source.dataset.metadata()
      alone &= frame | [known[int(number)].still for number in records]
    return Plan(source, epoch, records, first + drawn.astype(np.int64), seeds, frame, alone)

  def _choice(self, step):
    """Returns the source of a step and how many batches it gave before."""
    block, here = divmod(step, BLOCK)
    choices, before = self._block(block)
    chosen = choices[here]
    if chosen < 0:
      raise ValueError(
        f'No source is active at {step=}; look at from_step, until_step and weight in data.sources.'
      )
    return chosen, before[chosen] + np.sum(choices[:here] == chosen)

  def _choose_block(self, block):
    """Returns the sources of a block's steps, and batches of each before it."""
    before = np.zeros(len(self._sources), np.int64)
    for earlier in range(block):  # 0.2 ms each: 50 ms at step 1,000,000.
      choices = self._draw(earlier)
      before += np.bincount(choices[choices >= 0], minlength=len(before))
    return self._draw(block), before

  def _draw(self, block):
    """Draws sources by weight among the active: int64[BLOCK], -1 if none."""
    steps = np.arange(block * BLOCK, (block + 1) * BLOCK)
    weights = np.stack([source.weight * source.is_active(steps) for source in self._sources])
    upper = np.cumsum(weights, 0)
    uniform = _uniform(hash64(self._seed, SOURCE, steps))
    choices = np.sum(uniform * upper[-1] >= upper, 0)
    return np.where(upper[-1] > 0, choices, -1)

  def _shuffle(self, number, epoch):
    source = self._sources[number]
    noise = hash64(self._seed, SHUFFLE, source.key, epoch, np.arange(len(source)))
    return np.argsort(noise, kind='stable')


def _next_readable(source, shuffled, offset):
  """Returns examples, each that is broken replaced by the next in the order."""
  chosen = shuffled[offset]
  broken = np.isin(source.records[chosen], list(source.broken))
  for i in np.flatnonzero(broken):
    later = np.roll(shuffled, -offset[i])
    readable = np.flatnonzero(~np.isin(source.records[later], list(source.broken)))
    if not readable.size:
      raise TooManyBroken(f'No record of {source.name} can be read.')
    chosen[i] = later[readable[0]]
  return chosen


def texts(plan, tokenizer, length):
  """Returns what a batch has beside the clips: fields of VideoTextBatch, of a Plan's rows."""
  source, records, alone = plan.source, plan.records, plan.alone
  said = ['' if none else source.read_text(i) for i, none in zip(plan.texts, alone, strict=True)]
  ids, mask, *tower = tokenizer.encode(said, length)
  return {
    'text_ids': ids,
    'text_mask': mask,
    'tower_ids': tower[0] if tower else np.zeros((len(ids), 0), np.int32),
    'video_id': video_ids(source.dataset, records),
    'caption_id': np.where(alone, np.int32(NO_TEXT), caption_ids(ids)),
    'answer': source.labels[plan.texts],
    'valid': np.ones(len(records), bool),
  }


def hash64(*parts):
  """Mixes whole numbers, or arrays of them, to uint64 of full range.

  By splitmix64: numpy does not promise that its generators stay the same.
  """
  mixed = np.zeros(1, np.uint64)
  for part in parts:
    mixed = (mixed ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
  return mixed


def caption_ids(ids):
  """int32[B], the same for texts int32[B, L] whose tokens are the same.

  Capitals, other forms of a letter, unknown words and what is cut off make
  other texts, but no other tokens.
  """
  return _int32(hash64(*ids.T))


def video_ids(prepared, records):
  """int32[b], the same for the same record of the same PreparedDataset."""
  digest = hashlib.blake2b(prepared.name.encode(), digest_size=8).digest()
  return _int32(hash64(VIDEO, int.from_bytes(digest, 'little'), records))


def _uniform(hashed):
  # In 0..1, 53 bits; times a total it stays below that total.
  return (hashed >> np.uint64(11)) / 2**53


def _int32(hashed):
  return (hashed >> np.uint64(33)).astype(np.int32)
