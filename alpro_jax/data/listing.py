"""Finds the videos below a folder by what they hold, and names the rest."""

import os
import stat
from collections import Counter
from typing import NamedTuple

from alpro_jax.data import annotations, sniff
from alpro_jax.data.names import VIDEO_SUFFIXES

# A file with such a name is a video, or a broken one: the decoder says which.
SUFFIXES = (
  *VIDEO_SUFFIXES,
  '.mts',
  '.m2ts',
  '.m2t',
  '.vob',
  '.f4v',
  '.asf',
  '.m2v',
  '.m1v',
  '.mpe',
  '.mpv',
  '.mp4v',
  '.3g2',
  '.qt',
  '.divx',
  '.ogm',
  '.rm',
  '.rmvb',
  '.mxf',
  '.dv',
  '.y4m',
  '.h264',
  '.hevc',
  '.ivf',
  '.wtv',
  '.nut',
)
_VIDEO = tuple(map(os.fsencode, SUFFIXES))
# But TypeScript has these as well.
_SHARED = b'.ts', b'.mts'
# Of the same formats, but without pictures, or with one.
_SOUND = (
  b'.m4a',
  b'.m4b',
  b'.m4p',
  b'.m4r',
  b'.mka',
  b'.mks',
  b'.weba',
  b'.wma',
  b'.oga',
  b'.ogg',
  b'.opus',
  b'.spx',
  b'.ra',
  b'.cr3',
)
_UNFINISHED = (
  b'.part',
  b'.partial',
  b'.crdownload',
  b'.download',
  b'.tmp',
  b'.temp',
  b'.ytdl',
  b'.aria2',
)


class Listing(NamedTuple):
  """What lies below a folder; all names are relative to it, and sorted.

  Attributes:
    videos: by their first bytes, or by their name where those say nothing.
    passed_over: (name, reason) of what has a video's name or first bytes and
      is none.
    problems: (name, reason) of what cannot be looked at.
    others: how many files of other kinds there are, by suffix, such as '.srt'.
  """

  videos: list[bytes]
  passed_over: list[tuple[bytes, str]]
  problems: list[tuple[bytes, str]]
  others: Counter[str]


def list_videos(root, leave_out=None) -> Listing:
  """Looks at every file below a folder; links to folders are not followed.

  Args:
    root: the folder.
    leave_out: bytes -> bool, says of a name that it is not to be looked at.
  """
  root = os.fsencode(os.path.abspath(root))
  videos, passed_over, problems, others = [], [], [], Counter()

  def failed(error):
    problems.append((os.path.relpath(error.filename, root), error.strerror))

  for folder, _, names in os.walk(root, onerror=failed):
    for name in names:
      path = os.path.join(folder, name)
      name = os.path.relpath(path, root)
      if leave_out and leave_out(name):
        continue
      suffix = os.path.splitext(name)[1].lower()
      try:
        if not stat.S_ISREG(os.stat(path).st_mode):
          reason = 'no regular file' if suffix in _VIDEO else None
        else:  # Opening a pipe would wait for ever.
          reason = _why_not(name, suffix, sniff.what_file(path))
      except OSError as error:
        problems.append((name, error.strerror))
        continue
      if reason is None:
        others[annotations.printable(os.fsdecode(suffix))] += 1
      elif reason:
        passed_over.append((name, reason))
      else:
        videos.append(name)
  return Listing(sorted(videos), sorted(passed_over), sorted(problems), others)


def _why_not(name, suffix, kind):
  """Returns '' of a video, why it is none, or None if nothing speaks for it.

  Args:
    name, suffix: bytes.
    kind: from sniff.
  """
  if suffix in _VIDEO:
    none = kind == 'AppleDouble file' or (
      suffix in _SHARED and kind not in ('video', '', 'empty file')
    )
    return f'{kind}, no video' if none else ''
  if kind != 'video' or suffix in _SOUND:
    return None
  if suffix in _UNFINISHED:
    return 'unfinished, by its name'
  hidden = os.path.basename(name).startswith(b'.')
  return 'hidden, and no name of a video' if hidden else ''
