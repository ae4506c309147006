"""Finds the videos below a folder by what they hold, and names the rest."""

import os
import stat
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from alpro_jax import files
from alpro_jax.data import annotations, sniff
from alpro_jax.data.names import VIDEO_SUFFIXES

# A file with such a name is a video, or a broken one: the decoder says which.
SUFFIXES = VIDEO_SUFFIXES + tuple(
  '.mts .m2ts .m2t .vob .f4v .asf .m2v .m1v .mpe .mpv .mp4v .3g2 .qt .divx .ogm .rm .rmvb .mxf '
  '.dv .y4m .h264 .hevc .ivf .wtv .nut'.split()
)
_VIDEO = tuple(map(os.fsencode, SUFFIXES))
_SHARED = b'.ts', b'.mts'  # But TypeScript has these as well.
# Of the same formats, but without pictures, or with one.
_SOUND = b'.m4a .m4b .m4p .m4r .mka .mks .weba .wma .oga .ogg .opus .spx .ra .cr3'.split()
_UNFINISHED = b'.part .partial .crdownload .download .tmp .temp .ytdl .aria2'.split()


class Listing(NamedTuple):
  """What lies below a folder; all names are relative to it, and sorted.

  Attributes:
    videos: by their first bytes, or by their name where those say nothing.
    passed_over: (name, reason) of what has a video's name or first bytes and is none.
    problems: (name, reason) of what cannot be looked at.
    others: how many files of other kinds there are, by suffix, such as '.srt'.
  """

  videos: list[bytes]
  passed_over: list[tuple[bytes, str]]
  problems: list[tuple[bytes, str]]
  others: Counter[str]


class File(NamedTuple):
  """A video file as it was seen: the same as long as all of this is."""

  name: bytes
  size: int
  mtime_ns: int
  ends: bytes | None = None  # See files.ends_digest.


def look_at(path: bytes, name: bytes) -> File:
  """Looks at a video; raises OSError if it cannot be read."""
  with open(path, 'rb') as file:
    about = os.fstat(file.fileno())
    return File(name, about.st_size, about.st_mtime_ns, files.ends_digest(file))


def list_videos(root, leave_out=None) -> Listing:
  """Looks at every file below a folder, but for names (bytes) of which `leave_out` is true.

  Links to folders are not followed.
  """
  root = os.fsencode(os.path.abspath(root))
  found = Listing([], [], [], Counter())

  def failed(error):
    found.problems.append((os.path.relpath(error.filename, root), error.strerror))

  for folder, _, names in os.walk(root, onerror=failed):
    for path in (os.path.join(folder, name) for name in names):
      name = os.path.relpath(path, root)
      if leave_out and leave_out(name):
        continue
      try:
        if not stat.S_ISREG(os.stat(path).st_mode):
          reason = 'no regular file' if _suffix(name) in _VIDEO else None
        else:  # Opening a pipe would wait for ever.
          reason = _why_not(name, sniff.what_file(path))
      except OSError as error:
        found.problems.append((name, error.strerror))
      else:
        _add(found, name, reason)
  return _sorted(found)


def list_heads(heads: Iterable[tuple[bytes, bytes]]) -> Listing:
  """Judges files by (name, first bytes), as those that lie in a bucket."""
  found = Listing([], [], [], Counter())
  for name, head in heads:
    _add(found, name, _why_not(name, sniff.what(head)))
  return _sorted(found)


def _suffix(name):
  return os.path.splitext(name)[1].lower()


def _add(found, name, reason):
  if reason is None:
    found.others[annotations.printable(os.fsdecode(_suffix(name)))] += 1
  elif reason:
    found.passed_over.append((name, reason))
  else:
    found.videos.append(name)


def _sorted(found):
  for listed in found[:3]:
    listed.sort()
  return found


def _why_not(name, kind):
  """Returns '' of a video, why it is none, or None if nothing speaks for it."""
  suffix = _suffix(name)
  if suffix in _VIDEO:
    shared = suffix in _SHARED and kind not in ('video', '', 'empty file')
    return f'{kind}, no video' if shared or kind == 'AppleDouble file' else ''
  if kind != 'video' or suffix in _SOUND:
    return None
  if suffix in _UNFINISHED:
    return 'unfinished, by its name'
  return 'hidden, and no name of a video' if os.path.basename(name).startswith(b'.') else ''
