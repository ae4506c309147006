"""The folder that videos lie in, here or in a bucket.

A bucket is listed once; of its videos only a few are looked into, and only at their ends.
"""

import contextlib
import glob
import itertools
import os
from collections.abc import Callable, Iterable

from alpro_jax import buckets, files
from alpro_jax.data import listing, names, sniff
from alpro_jax.data.manifest import PrepareError


class Folder:
  """Videos on this machine."""

  def __init__(self, path: str):
    self.path = path

  def __contains__(self, clip) -> bool:
    """Whether a file of a clip is there."""
    try:
      return self._find(clip) is not None
    except ValueError:
      return True  # More than once, which is said of the clip.

  def has_one(self, clip) -> bool:
    """Whether a file of a clip is there, and it is clear which."""
    try:
      return self._find(clip) is not None
    except ValueError:
      return False

  def some_names(self) -> list[str]:
    """Returns up to five of what is there."""
    there = glob.iglob('**', root_dir=self.path, recursive=True)
    return sorted(itertools.islice(there, 1000))[:5]

  def ends(self, clips: Iterable) -> dict[str, str]:
    """Returns {video: size and digest of its ends} of those that are there."""
    found = {}
    for clip in clips:
      with contextlib.suppress(OSError, ValueError):
        if path := self._find(clip):
          with open(path, 'rb') as stream:
            size = os.fstat(stream.fileno()).st_size
            found[clip.video] = _told(size, files.ends_digest(stream))
    return found

  def list_videos(self, leave_out: Callable[[bytes], bool]) -> listing.Listing:
    """Returns what else lies there; see listing.list_videos."""
    return listing.list_videos(self.path, leave_out)

  def _find(self, clip):
    return names.find_file(self.path, clip.files)


class Bucket(Folder):
  """Videos at an address."""

  def __init__(self, path):
    super().__init__(path.rstrip('/'))
    self._sizes = files.sizes(self.path)

  def some_names(self):
    return sorted(self._sizes)[:5]

  def ends(self, clips):
    places = {}
    for clip in clips:
      with contextlib.suppress(ValueError):
        if path := self._find(clip):
          places[clip.video] = self._name(path)
    spans = [
      buckets.Span(f'{self.path}/{name}', *span)
      for name in places.values()
      for span in files.ends_of(self._sizes[name])
    ]
    read = map(bytes, buckets.read_spans(spans))
    return {
      video: _told(self._sizes[name], files.digest_of_ends(next(read), next(read)))
      for video, name in places.items()
    }

  def list_videos(self, leave_out):
    sizes = {
      os.fsencode(name): size
      for name, size in self._sizes.items()
      if not leave_out(os.fsencode(name))
    }
    heads = buckets.read_spans(
      [
        buckets.Span(f'{self.path}/{os.fsdecode(name)}', 0, min(size, sniff.HEAD))
        for name, size in sizes.items()
      ]
    )
    return listing.list_heads(zip(sizes, map(bytes, heads), strict=True))

  def _find(self, clip):
    return names.find_file(self.path, clip.files, lambda path: self._name(path) in self._sizes)

  def _name(self, path):
    return path.removeprefix(f'{self.path}/')


def open_folder(path) -> Folder:
  """Raises PrepareError, or buckets.BucketError, unless a folder is there."""
  if buckets.is_address(path):
    return Bucket(os.fspath(path))
  path = os.path.abspath(path)
  if not os.path.isdir(path):
    raise PrepareError(f'{path} is not a folder.')
  return Folder(path)


def _told(size, digest):
  return f'{size} {digest.hex()[:16]}'
