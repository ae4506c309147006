"""Tokenizers of text towers, small enough to read."""

import gzip
import json

# Ids are 256 bytes, 256 bytes that end a word, these, and two for begin and end.
MERGES = ('d o', 'do g</w>', 'r u')
FILE = 'bpe_simple_vocab_16e6.txt.gz'


def write(folder, context=8):
  """Writes CLIP's with three merges as open_clip's weights have it; returns the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  lines = '\n'.join(['"a heading"', *MERGES, ''])
  (folder / FILE).write_bytes(gzip.compress(lines.encode()))
  config = {'model_cfg': {'text_cfg': {'context_length': context}}}
  (folder / 'open_clip_config.json').write_text(json.dumps(config))
  return folder
