"""Damages files and rows in the ways that files and rows are damaged.

Every function takes a random.Random and changes nothing else: a seed says all
of what a case was.
"""

import json
import random

# What other programs leave under the name of a video, a photo or a text.
FOREIGN = (
  b'',
  b'\0' * 4096,
  b'a text, not a video\n' * 50,
  b'%PDF-1.7\n1 0 obj\n',
  b'PK\x03\x04' + b'\x14\0' * 200,
  b'\x7fELF\x02\x01\x01' + b'\0' * 300,
  b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{ } loop\n',
  b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
  b'<!DOCTYPE html><title>404 Not Found</title>',
  b'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n',
  b'ffconcat version 1.0\nfile /etc/passwd\n',
  b'v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5000 RTP/AVP 96\n',
  b'\x1f\x8b\x08\0' + b'x' * 99,
  b'RIFF\xff\xff\xff\x7fAVI LIST',
  b'\0\0\0\x18ftypmp42' + b'\xff' * 64,
  b'\x1aE\xdf\xa3\xff' * 9,
  b'GIF89a\xff\xff\xff\xff\xf7\0\0',
  b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x02\0\0\0',
  b'BM' + b'\xff' * 60,
  b'P6 99999 99999 255\n',
  b'II*\0\x08\0\0\0' + b'\xff' * 40,
  b'\xff\xd8\xff\xe0' + b'\xff' * 40,
  b'\x80\x04cos\nsystem\n.',
)


def bend(rng: random.Random, data: bytes, other: bytes) -> bytes:
  """Returns a damaged copy of a file.

  Args:
    rng: which damage, and where.
    data: the file.
    other: a file of another kind, whose head or tail may be mixed in.
  """
  data = bytearray(data)

  def span(longest):
    start = rng.randrange(len(data))
    return slice(start, start + rng.randint(1, max(1, longest)))

  kind = rng.choice(
    (
      'bits',
      'bits',
      'bits',
      'bytes',
      'bytes',
      'head',
      'truncate',
      'remove',
      'repeat',
      'zero',
      'move',
      'foreign',
      'head of other',
      'tail of other',
      'numbers',
    )
  )
  if kind == 'foreign' or len(data) < 2:
    return rng.choice(FOREIGN)
  if kind in ('bits', 'bytes', 'head'):
    end = min(len(data), 200) if kind == 'head' else len(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20, 100))):
      place = rng.randrange(end)
      data[place] = rng.randrange(256) if kind == 'bytes' else data[place] ^ 1 << rng.randrange(8)
  elif kind == 'numbers':  # Sizes and counts are of four bytes, mostly.
    for _ in range(rng.randint(1, 4)):
      place = rng.randrange(len(data))
      data[place : place + 4] = rng.choice(
        (b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff', b'\0\0\0\0', b'\xff\xff\xff\x7f', b'\0\0\0\x01')
      )
  elif kind == 'truncate':
    del data[rng.randrange(len(data)) :]
  elif kind == 'remove':
    del data[span(len(data) // 2)]
  elif kind == 'repeat':
    where = span(len(data) // 2)
    data[where.start : where.start] = data[where] * rng.choice((1, 2, 9))
  elif kind == 'zero':
    where = span(len(data) // 2)
    data[where] = bytes(len(data[where]))
  elif kind == 'move':
    where = span(len(data) // 4)
    moved = data[where]
    del data[where]
    place = rng.randint(0, len(data))
    data[place:place] = moved
  elif kind == 'head of other':
    length = rng.choice((4, 12, 40, 200))
    data[:length] = other[:length]
  elif kind == 'tail of other':
    place = rng.randrange(len(data))
    data[place:] = other[rng.randrange(max(1, len(other))) :]
  return bytes(data)


def _strange(rng, value):
  """Returns something that should not stand where `value` does."""
  text = value if isinstance(value, str) else str(value)
  return rng.choice(
    (
      None,
      True,
      0,
      -1,
      7,
      2**63,
      10**400,
      1e308,
      float('inf'),
      float('nan'),
      [],
      {},
      [text],
      [text, None],
      [text, text],
      {'a': text},
      [[[text]]],
      '',
      ' ',
      '\t\n',
      '.',
      '..',
      '../' + text,
      '/etc/passwd',
      f'/{text}',
      f'a/../../{text}',
      f'./{text}',
      f'{text}/',
      f'{text}/..',
      f'a\\..\\{text}',
      text + '\0',
      '\0',
      '\ud800',
      text + '\udcff',
      'é' * 300,
      'x' * 100_000,
      f'"{text}"',
      f"{text}'",
      f'{text}"',
      f'{text}\n{text}',
      f'{text}\r',
      f'{text},{text}',
      text.upper(),
      f' {text} ',
      '\ufeff' + text,
      'http://a.b/' + text,
      'file:///etc/passwd',
      '%s%n',
      '{0}',
      '٣',
      '-rf',
      '\u202e' + text,
      'train',
      'val',
      '1e999',
      '0x10',
      'nan',
      'null',
    )
  )


def bend_row(rng: random.Random, row: dict):
  """Returns what may stand in place of a row: mostly another dict."""
  kind = rng.choice(('value', 'value', 'value', 'drop', 'rename', 'add', 'other', 'nest'))
  row, key = dict(row), rng.choice(sorted(row))
  if kind == 'value':
    row[key] = _strange(rng, row[key])
  elif kind == 'drop':
    del row[key]
  elif kind == 'rename':
    row[rng.choice((key.upper(), f' {key}', f'{key}s', '', 'split'))] = row.pop(key)
  elif kind == 'add':
    row[
      rng.choice(
        ('split', 'style', 'type', 'answer_type', 'page_dir', 'x', 'txt_len', 'video_id', 'caption')
      )
    ] = _strange(rng, 'x')
  elif kind == 'other':
    return rng.choice((None, 3, 'text', [], [row], {}, True, 1.5, [[]]))
  else:
    nested = row[key]
    for _ in range(rng.choice((3, 50, 400))):
      nested = [nested]
    row[key] = nested
  return row


def bend_lines(rng: random.Random, text: bytes) -> bytes:
  """Returns a text file damaged as text files are: in lines and encodings."""
  lines = text.split(b'\n')
  place = rng.randrange(len(lines))
  kind = rng.choice(
    (
      'quote',
      'quote',
      'insert',
      'insert',
      'join',
      'swap',
      'again',
      'cut',
      'long',
      'deep',
      'ends',
      'ends',
      'encoding',
      'mark',
      'drop',
    )
  )
  if kind in ('quote', 'insert'):
    what = (
      b'"'
      if kind == 'quote'
      else rng.choice(
        (
          b'\0',
          b'\xff',
          b'\xed\xa0\x80',
          b',',
          b',,,',
          b'\\',
          b'\\u0000',
          b'{',
          b'}',
          b'[',
          b'\r',
          b'\x1a',
          b'\x0b',
          b'\xc2\x85',
          b'\xe2\x80\xa8',
          b'\t',
          b"'",
          b'""',
          b'\\ud800',
          b'/',
          b'../',
        )
      )
    )
    for _ in range(rng.choice((1, 1, 2, 3))):
      place = rng.randrange(len(lines))
      at = rng.randint(0, len(lines[place]))
      lines[place] = lines[place][:at] + what + lines[place][at:]
  elif kind == 'join':
    lines[place : place + 2] = [b''.join(lines[place : place + 2])]
  elif kind == 'swap':
    rng.shuffle(lines)
  elif kind == 'again':
    lines[place:place] = [lines[place]] * rng.choice((1, 3))
  elif kind == 'cut':
    lines[place] = lines[place][: rng.randint(0, len(lines[place]))]
  elif kind == 'drop':
    del lines[place]
  elif kind == 'long':
    lines[place] += b'x' * rng.choice((10_000, 300_000))
  elif kind == 'deep':
    lines[place] = rng.choice((b'[', b'{"video":', b'"')) * rng.choice((500, 20_000))
  elif kind == 'mark':
    lines[place] = b'\xef\xbb\xbf' + lines[place]
  elif kind == 'ends':
    return rng.choice((b'\r\n', b'\r', b'\n\n', b'\n\r\n', b'\0\n')).join(lines)
  elif kind == 'encoding':
    words = text.decode('utf-8', 'replace')
    return words.encode(
      rng.choice(('utf-16', 'utf-16-le', 'utf-32', 'utf-8-sig', 'cp037')), 'replace'
    )
  return b'\n'.join(lines)


def dump(value) -> str:
  """JSON as programs write it that do not look: NaN and surrogates too."""
  return json.dumps(value)
