"""Prepared sets in memory for tests: frames of one colour that say who."""

import json

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from alpro_jax.data import dataset

SIZE = 16


class MemorySet(dataset.PreparedDataset):
  """A PreparedDataset whose records never were on disk.

  Frame f of record r is one colour: red 10 r, green 10 f, blue 100.

  Attributes:
    fetched: every record number that was read, in order.
    damaged: record numbers that fetch cannot read.
    rotten: record numbers whose frames are no JPEG.
  """

  def __init__(
    self,
    records=10,
    frames=8,
    *,
    name='set',
    captions=None,
    styles=None,
    questions=None,
    stills=(),
    size=SIZE,
  ):
    captions = captions or [(f'clip {i}',) for i in range(records)]
    styles = styles or [('',) * len(texts) for texts in captions]
    lines = []
    for i in range(records):
      asked = questions[i] if questions else ()
      row = {
        'video': f'{i}.mp4',
        'captions': captions[i],
        'styles': styles[i],
        'still': i in stills,
        'frames': 1 if i in stills else frames,
        'questions': [question.text for question in asked],
        'answers': [question.answer for question in asked],
        'kinds': [question.kind for question in asked],
      }
      lines.append(json.dumps(row) + '\n')
    index = dataset.Index(''.join(lines).encode())
    super().__init__(f'sets/{name}', 'train', {'digest': name}, index)
    self.fetched = []
    self.damaged = set()
    self.rotten = set()
    self.size = size

  def fetch(self, indices):
    self.fetched += list(indices)
    for index in indices:
      if index in self.damaged:
        raise dataset.UnreadableRecord(f'record {index} is damaged', index)
    return [self._serialize(int(index)) for index in indices]

  def _serialize(self, index):
    infos = self.metadata()
    info, number = infos[index], infos.numbers[index]
    stored = [
      b'no jpeg' if number in self.rotten else jpeg(number, frame, self.size)
      for frame in range(info.frames)
    ]
    return dataset.features().serialize_example(
      {
        'video': info.video,
        'frames': stored,
        'seconds': np.arange(info.frames, dtype=np.float32),
        'captions': list(info.captions),
        'styles': list(info.styles),
        'questions': [question.text for question in info.questions],
        'answers': [question.answer for question in info.questions],
        'kinds': [question.kind for question in info.questions],
        'still': info.still,
      }
    )


def parse(serialized):
  """Reads a record as TFDS does; its frames stay JPEG."""
  skip = {'frames': tfds.decode.SkipDecoding()}
  return dataset.features().deserialize_example(serialized, decoders=skip)


def jpeg(record, frame, size):
  pixels = np.zeros((size, size, 3), np.uint8)
  pixels[:] = 10 * record, 10 * frame, 100
  return tf.io.encode_jpeg(pixels, quality=100).numpy()


def who(video):
  """uint8[B, T, H, W, 3] of such frames -> records [B], frames [B, T]."""
  middle = video[:, :, SIZE // 2, SIZE // 2].astype(float)
  tens = np.rint(middle / 10).astype(int)
  return tens[:, 0, 0], tens[:, :, 1]


class Letters:
  """A tokenizer of one id per letter, which can be read back."""

  vocab_size = 256
  digest = 'letters'

  def encode(self, texts, max_tokens):
    ids = np.zeros((len(texts), max_tokens), np.int32)
    for i, text in enumerate(texts):
      row = [2, *text.encode()][: max_tokens - 1] + [3]
      ids[i, : len(row)] = row
    return ids, ids > 0

  def decode(self, ids):
    return bytes(int(i) for i in ids if i > 3).decode()
