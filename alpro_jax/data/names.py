"""Names of videos: which may be opened, and which file of a folder one means."""

import hashlib
import itertools
import os
import re
import unicodedata
import urllib.parse

from alpro_jax.data.annotations import MISSING, encodable

VIDEO_SUFFIXES = tuple(
  '.mp4 .avi .mov .m4v .mkv .webm .mpg .mpeg .ts .wmv .flv .3gp .gif .ogv'.split()
)
PHOTO_SUFFIXES = tuple('.jpg .jpeg .png .webp .gif .bmp .tif .tiff .avif'.split())

# Columns of a captions file that hold addresses to fetch, the first one first.
ADDRESSES = ('contentUrl', 'url')


def is_photo(name: str) -> bool:
  """Whether a name is that of a photo; a .gif may move."""
  suffix = os.path.splitext(name.lower())[1]
  return suffix in PHOTO_SUFFIXES and suffix not in VIDEO_SUFFIXES


def name_problem(name) -> str:
  """Returns why a name may not be opened, or ''."""
  if not isinstance(name, str) or name.strip() in MISSING:
    return 'no video name'
  if '\0' in name or not encodable(name):
    return 'bad video name'
  if name.startswith('/') or '..' in name.split('/'):
    return 'outside the folder of videos'
  if not canonical(name):  # '.' names the folder itself.
    return 'no video name'
  return ''


def canonical(name: str) -> str:
  """Returns a name in Unicode's form NFC, without '.' and empty parts."""
  parts = unicodedata.normalize('NFC', name).split('/')
  return '/'.join(part for part in parts if part not in ('', '.'))


def folded(name: str) -> str:
  """Returns what is equal for names that `find_file` finds one file for."""
  stem, suffix = os.path.splitext(canonical(name))
  return stem + suffix.lower()


def find_file(root, names, is_file=os.path.isfile):
  """Returns the path of the first file that is there, in whatever spelling, or None.

  macOS takes accents apart (NFD) where others write one character (NFC), and cameras write
  suffixes in capitals. `is_file` is asked of each path.

  Raises:
    ValueError: two files are meant by one name.
  """

  def there(stem, suffixes):
    found = {}
    for form in {unicodedata.normalize(form, stem) for form in ('NFC', 'NFD')}:
      for suffix in suffixes:
        path = os.path.join(root, form + suffix)
        if is_file(path):
          found.setdefault(os.path.realpath(path), path)
    if len(found) > 1:
      named = sorted(path.removeprefix(root).lstrip('/') for path in found.values())
      raise ValueError(f'one name, two files: {named}')
    return next(iter(found.values()), None)

  parts = [os.path.splitext(name) for name in names]
  exact = ((stem, [suffix]) for stem, suffix in parts)
  near = ((stem, [suffix.lower(), suffix.upper(), suffix.title()]) for stem, suffix in parts)
  return next(filter(None, itertools.starmap(there, itertools.chain(exact, near))), None)


def is_address(text) -> bool:
  """Whether this is an http(s) address."""
  return isinstance(text, str) and bool(re.match(r'(?i)https?://', text))


def file_of(url: str, *, still: bool = False) -> str:
  """Returns the file that an address is fetched into.

  It has letters and digits of the end of the address, the first of the address's sha256,
  since others may end alike, and the suffix: of a photo if `still`, else of a video or photo.
  """
  path = url.split('?')[0].split('#')[0]
  stem, suffix = os.path.splitext(urllib.parse.unquote(path).rsplit('/', 1)[-1])
  if suffix.lower() not in PHOTO_SUFFIXES + VIDEO_SUFFIXES * (not still):
    suffix = '.jpg' if still else '.mp4'
  stem = re.sub(r'[^\w-]+', '_', stem)[:40].strip('_')
  stem = stem.encode('utf-8', 'ignore').decode()
  digest = hashlib.sha256(url.encode('utf-8', 'surrogatepass')).hexdigest()
  return f'{stem or "video"}-{digest[:12]}{suffix}'
