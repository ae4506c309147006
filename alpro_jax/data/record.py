"""A clip of videos becomes the bytes of a record; this runs in workers."""

import contextlib
import dataclasses
import errno
import os
import stat
import tempfile

from alpro_jax import buckets
from alpro_jax.data import names, video, workers

_MAX_RECORD_BYTES = 1 << 30  # Protobuf ends at 2 GiB.
_FETCH_SECONDS = 600.0  # That a video of a bucket may take.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


@dataclasses.dataclass(frozen=True)
class Record:
  """What a worker makes of a clip: a serialised example, or why not."""

  example: bytes = b''
  frames: int = 0
  reason: str = ''
  detail: str = ''

  @property
  def size(self) -> int:
    return len(self.example)


def make_record(
  clip, *, root, fps, short_side, quality, max_frames, max_seconds, on_partial, follow_links=False
) -> Record:
  """Decodes one clip; never raises. For the options see prepare.Options."""
  path, detail, jpegs, seconds, size = '', '', [], [], 0
  with contextlib.ExitStack() as held:
    try:
      if buckets.is_address(root):
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix='alpro_jax-'))
        path = _fetch(clip, root, folder)
      else:
        path = _find(clip, root, follow_links)
      if clip.still:
        frames = [(video.read_still(path, short_side=short_side), 0.0)]
      else:
        frames = video.iterate_frames(
          path, fps=fps, short_side=short_side, max_frames=max_frames, max_seconds=max_seconds
        )
      try:
        for frame, second in frames:
          jpegs.append(video.encode_jpeg(frame, quality))
          seconds.append(second)
          size += len(jpegs[-1])
          if size > _MAX_RECORD_BYTES:
            raise video.UnreadableVideo(
              'too long',
              f'{len(jpegs)} frames are over {size >> 20} MiB; lower --fps or set --max_frames',
            )
      except video.PartlyReadable as e:
        # A header that promises more may also be wrong: named, not left out.
        skip = on_partial == 'skip' and not isinstance(e, video.EndsEarly)
        if skip or workers.machine_problem(path, e):
          raise
        detail = e.detail
    except Exception as e:
      if path and (problem := workers.machine_problem(path, e)):
        return Record(reason=workers.MACHINE, detail=problem)
      if isinstance(e, video.UnreadableVideo):
        return Record(reason=e.reason, detail=e.detail)
      return Record(reason='unreadable', detail=f'{type(e).__name__}: {e}')
  return Record(_example(clip, jpegs, seconds), len(jpegs), '', detail)


def _find(clip, root, follow_links):
  """Returns the path of the first file of a clip that is there."""
  path = _first(clip, root, _is_file)
  real, root = os.path.realpath(path), os.path.realpath(root)
  if not follow_links and os.path.commonpath([root, real]) != root:
    raise video.UnreadableVideo(
      'outside the folder of videos', f'a link to {real}; --follow_links allows it'
    )
  return path


def _fetch(clip, root, folder):
  """Copies that file from a bucket into a folder; returns its path there."""
  copies = {}

  def copy(address):
    path = os.path.join(folder, f'{len(copies)}{os.path.splitext(address)[1]}')
    try:
      buckets.copy_here(address, path)
    except FileNotFoundError:
      return False
    except OSError as e:  # The same command tries it again.
      raise video.UnreadableVideo(workers.MACHINE, str(e)) from e
    copies[address] = path
    return True

  workers.allow(_FETCH_SECONDS)
  return copies[_first(clip, root, copy)]


def _first(clip, root, is_file):
  try:
    path = names.find_file(root, clip.files, is_file)
  except ValueError as e:
    raise video.UnreadableVideo('ambiguous name', str(e)) from e
  if path is None:
    raise video.UnreadableVideo('missing file')
  return path


def _is_file(path):
  try:
    return stat.S_ISREG(os.stat(path).st_mode)
  except OSError as e:
    if e.errno not in _NOT_THERE:
      raise video.UnreadableVideo(workers.MACHINE, e.strerror) from e
    return False


def _example(clip, jpegs, seconds):
  """Returns a tf.train.Example in its wire format, keys in sorted order.

  Written out here because workers must not pay for importing TensorFlow, and because
  protobuf promises no order of map keys, so no digests.
  """
  import numpy as np  # noqa: PLC0415

  def texts(values):
    return _bytes_list(value.encode() for value in values)

  features = {
    'video': texts([clip.video]),
    'frames': _bytes_list(jpegs),
    'seconds': _field(2, _field(1, np.asarray(seconds, '<f4').tobytes())),
    'captions': texts(clip.captions),
    'styles': texts(clip.styles),
    'questions': texts(question.text for question in clip.questions),
    'answers': texts(question.answer for question in clip.questions),
    'kinds': texts(question.kind for question in clip.questions),
    'still': _field(3, _field(1, _varint(int(clip.still)))),
  }
  entries = (
    _field(1, _field(1, key.encode()) + _field(2, feature))
    for key, feature in sorted(features.items())
  )
  return _field(1, b''.join(entries))


def _bytes_list(values):
  return _field(1, b''.join(_field(1, value) for value in values))


def _field(number, payload):
  return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(number):
  out = bytearray()
  while number > 127:
    out.append(number & 127 | 128)
    number >>= 7
  out.append(number)
  return bytes(out)
