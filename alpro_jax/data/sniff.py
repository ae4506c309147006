"""Says what a file holds by its first bytes, whatever its name says."""

import os
import re

HEAD = 4096  # Bytes that `what` looks at.

_BOX = rb'(ftyp|styp|moov|moof|mdat|sidx|free|skip|wide|uuid|pnot)'
# The first that matches counts.
_BINARY = {
  'picture': rb'\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|II\*\0|MM\0\*'
  rb'|BM.{4}\0{4}|\0\0\x01\0.\0|P[4-6]\s|\xff\x4f\xff\x51|\xff\n'
  rb'|\0\0\0\x0c(jP  |JXL )|....ftyp(avif|avis|heic|heix|mif1|msf1)',
  # Last of all MPEG: a start code; or a transport stream, where every 188th
  # byte (192nd, 204th) is 0x47, from anywhere in a packet on.
  'video': rb'....' + _BOX + rb'|\x1a\x45\xdf\xa3|RIFF....AVI |FLV\x01|GIF8[79]a|OggS|\.RMF'
  rb'|\x30\x26\xb2\x75\x8e\x66\xcf\x11|\xb7\xd8\0\x20\x37\x49\xda'
  rb'|YUV4MPEG2|DKIF|nut/|\x06\x0e\x2b\x34|\x1f\x07\0|\0?\0\0\x01[^\0]'
  rb'|.{0,203}?\x47((.{187}\x47){4}|(.{191}\x47){4}|(.{203}\x47){4})',
  'gzip': rb'\x1f\x8b',
  'zip': rb'PK(\x03\x04|\x05\x06)',
  'compressed file': rb'BZh\d|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf',
  'PDF': rb'%PDF-',
  'program': rb'\x7fELF|MZ.{58}',
  'AppleDouble file': rb'\0\x05\x16\x07',  # `._x.mp4`, beside x.mp4.
}
_TEXT = {
  'picture': rb'P[1-3]\s+[\d#]',
  'PDF': rb'%PDF-',
  'HTML page': rb'(\xef\xbb\xbf)?\s*<',
  'JSON text': rb'(\xef\xbb\xbf)?\s*[{\[]',
  'text': rb'',
}
_NOT_IN_TEXT = re.compile(rb'[\0-\x08\x0e-\x1a\x1c-\x1f]')
_UTF16 = (b'\xff\xfe', b'\xfe\xff')


def what(head):
  """Judges a file by how it begins.

  Args:
    head: bytes, the first HEAD of a file, or all of it.
  Returns:
    str: 'video' (GIF among them), 'picture', or what else is known, such as
    'HTML page', 'JSON text', 'text', 'gzip' or 'empty file'; '' for what is not
    known, which may be a video of a rare kind.
  """
  if not head:
    return 'empty file'
  kinds = _TEXT if head.startswith(_UTF16) or not _NOT_IN_TEXT.search(head) else _BINARY
  return next((kind for kind in kinds if re.match(kinds[kind], head, re.DOTALL)), '')


def what_file(path):
  """Returns `what` of a file; raises OSError if it cannot be read."""
  with open(path, 'rb') as file:
    return what(file.read(HEAD))


def box_size(head):
  """Returns the size in bytes of a box of MP4 that begins with these 16; 0 if up to the end."""
  size = int.from_bytes(head[:4], 'big')
  return int.from_bytes(head[8:16], 'big') if size == 1 and len(head) >= 16 else size


def is_cut(path):
  """Says whether an MP4 or MOV goes on where its file ends; False of others."""
  end = os.path.getsize(path)
  with open(path, 'rb') as file:
    if not re.fullmatch(_BOX, file.read(8)[4:]):
      return False
    at = 0
    while at < end:
      file.seek(at)
      head = file.read(16)
      if len(head) < 8:
        return True
      size = box_size(head)
      if size < 8:  # Up to the end of the file, or damaged.
        return False
      at += size
  return at > end
