"""Tokenizers of text towers against open_clip and transformers, on thousands of strings."""

import importlib.util
import json
import pathlib
import random
import shutil
import unicodedata

import numpy as np
import pytest
import sentencepiece
import tokenizers

from alpro_jax.data import tokens, tower_tokens

transformers = pytest.importorskip('transformers')
open_clip = importlib.util.find_spec('open_clip')
if open_clip is None:
  pytest.skip('open_clip is not installed', allow_module_level=True)

COUNT = 6000  # Strings.
WORDS = r"""
a the dog dogs runs behind RED Blue don't IT'S we've I'm they'll photo. snake_case under_score
café naïve façade Ångström résumé Zoë coöperate São ĲSSEL straße ẞ İstanbul ΟΔΟΣ ﬁne
0 7 42 2024 3.14 1,000 50% $5 #1 ½ ² Ⅷ ① ٣٤ ７８ 𝟗
🐶 😀😀 👩‍👩‍👧 🇩🇪 👍🏽 ❤️ ☃ ™
&amp; &lt;b&gt; &quot;x&quot; &#39; &eacute; &amp;amp; &amp;#x1F600; &nbsp; <b> </p> &unknown;
cafÃ© itâ€™s “quoted” ‘single’ … – — ﬀ ＡＢＣ
собака 犬が走る 狗在跑 개 كلب כלב कुत्ता สุนัข ἄνθρωπος ქართული
!!! ?! ... -- / \ @me http://a.b/c?d=1&e=2 (x) [y] {z} | ~ ^ ` * + = ▁
"""
# Also marks that stand apart, and what is white or not seen.
PARTS = [
  *WORDS.split(),
  *('cafe\u0301', 'n\u0303', 'a\u0323\u0302', '\u0301', '\u0345'),
  *('\t', '\n', '\r\n', '\xa0', '\u200b', '\u2028', '\u3000', '\x1f', '\x07', '\ufeff', '\x85'),
]

# Assigned long ago: libraries know Unicode of different years.
CODES = map(chr, (*range(0x20, 0x530), *range(0x1E00, 0x2C00)))
LETTERS = [x for x in CODES if unicodedata.ucd_3_2_0.category(x) != 'Cn']


def make_strings():
  """COUNT strings, the same ones every time: odd parts, stray signs, empty and overlong texts."""
  rng = random.Random(0)
  texts = ['', ' ', '\n', *PARTS, 'dog ' * 300, '🐶' * 200, 'x' * 900, '7' * 100, 'é&amp;' * 90]
  while len(texts) < COUNT:
    row = rng.choices(PARTS, k=rng.randint(1, rng.choice((3, 12, 40, 120))))
    if rng.random() < 0.3:  # Any letter that is assigned.
      row += rng.choices(LETTERS, k=6)
      rng.shuffle(row)
    texts.append(rng.choice((' ', ' ', ' ', '', '  ', '-', '\n')).join(row))
  return texts


STRINGS = make_strings()


def compare(ours, theirs, texts):
  """Fails with the first text that is read otherwise."""
  assert ours.shape == theirs.shape
  wrong = np.flatnonzero((ours != theirs).any(1))
  first = [(texts[i], ours[i].tolist(), theirs[i].tolist()) for i in wrong[:1]]
  assert not len(wrong), f'{len(wrong)} of {len(texts)} differ, such as {first}'


WHERE = pathlib.Path(*open_clip.submodule_search_locations)


@pytest.fixture(scope='module')
def original():
  """The module open_clip/tokenizer.py, without the package, which wants torchvision."""
  spec = importlib.util.spec_from_file_location('open_clip_tokenizer', WHERE / 'tokenizer.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def clip(tmp_path_factory, original):
  """A folder with OpenAI's vocabulary as vocab.json and merges.txt, made from its file here."""
  folder = tmp_path_factory.mktemp('clip')
  found = original.SimpleTokenizer()
  names = {'<start_of_text>': '<|startoftext|>', '<end_of_text>': '<|endoftext|>'}
  vocab = {names.get(piece, piece): i for piece, i in found.encoder.items()}
  (folder / 'vocab.json').write_text(json.dumps(vocab))
  merges = '\n'.join(map(' '.join, found.bpe_ranks))
  (folder / 'merges.txt').write_text(f'#version: 0.2\n{merges}\n')
  (folder / 'config.json').write_text('{"model_type": "clip"}')
  return folder


@pytest.mark.parametrize('name', ['ViT-B-32', 'PE-Core-B-16', 'PE-Core-bigG-14-448'])
def test_open_clip_and_pe_core(name, original, tmp_path):
  shutil.copy(original.default_bpe(), tmp_path)
  config = json.loads((WHERE / 'model_configs' / f'{name}.json').read_text())
  (tmp_path / 'open_clip_config.json').write_text(json.dumps({'model_cfg': config}))
  ours = tower_tokens.load(tmp_path)
  length = config['text_cfg']['context_length']
  assert ours.rules.context == length and ours.vocab_size == config['text_cfg']['vocab_size']
  compare(
    ours.encode(STRINGS, length)[0],
    original.SimpleTokenizer(context_length=length)(STRINGS).numpy(),
    STRINGS,
  )


def padded(theirs, texts, length):
  options = {'padding': 'max_length', 'truncation': True, 'max_length': length}
  return np.array(theirs(texts, **options)['input_ids'])


def test_clip_of_transformers(clip, original, tmp_path):
  theirs = transformers.CLIPTokenizer.from_pretrained(clip)
  ours = tokens.load_tokenizer(clip)
  assert ours.rules.family == 'clip'
  ids = ours.encode(STRINGS, 77)[0]
  compare(ids, padded(theirs, STRINGS, 77), STRINGS)
  theirs.save_pretrained(tmp_path)  # tokenizer.json.
  shutil.copy(clip / 'config.json', tmp_path)
  compare(tokens.load_tokenizer(tmp_path).encode(STRINGS, 77)[0], ids, STRINGS)
  # One vocabulary is one content, whatever file it comes in.
  files = original.default_bpe(), clip / 'vocab.json', tmp_path / 'tokenizer.json'
  assert len({tower_tokens.load(file, family='pe_core').digest for file in files}) == 1


@pytest.fixture(scope='module')
def siglip(tmp_path_factory):
  """A folder of SigLIP's, its model trained here with the settings of C4's."""
  folder = tmp_path_factory.mktemp('siglip')
  with open(folder / 'spiece.model', 'wb') as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter([x.lower() for x in STRINGS if x.strip()]),
      model_writer=file,
      vocab_size=2000,
      model_type='unigram',
      character_coverage=0.99,
      max_sentence_length=100_000,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      num_threads=1,
      minloglevel=2,
    )
  named = {'pad_token': '</s>', 'eos_token': '</s>', 'unk_token': '<unk>', 'extra_ids': 0}
  for name, settings in (
    ('config.json', {'model_type': 'siglip'}),
    ('tokenizer_config.json', named | {'tokenizer_class': 'SiglipTokenizer'}),
  ):
    (folder / name).write_text(json.dumps(settings))
  return folder


# Of a letter without end, and of ⩶ (===), several readings score the same: rounding decides.
UNEQUAL = [x for x in STRINGS if '⩶' not in x and (len(x) < 90 or len(set(x)) > 2)]


def test_siglip(siglip):
  assert len(UNEQUAL) > COUNT - 100
  ours, theirs = tokens.load_tokenizer(siglip), transformers.SiglipTokenizer.from_pretrained(siglip)
  compare(ours.encode(UNEQUAL, 64)[0], padded(theirs, UNEQUAL, 64), UNEQUAL)
  # The tower reads padding, so that rows are never shorter.
  assert ours.encode(['a dog'], 5)[0].shape == (1, 64)
  assert ours.special == (1, 2, -1, 1, -1)


def as_open_clip(folder):
  text = {
    'context_length': 64,
    'hf_tokenizer_name': 'x',
    'tokenizer_kwargs': {'clean': 'canonicalize'},
  }
  config = {'model_cfg': {'text_cfg': text}}
  (folder / 'open_clip_config.json').write_text(json.dumps(config))
  return folder


def test_siglip_of_open_clip(siglip, original, tmp_path):
  settings = json.loads((siglip / 'tokenizer_config.json').read_text())
  made = tmp_path / 'made'
  shutil.copytree(siglip, made)
  (made / 'tokenizer_config.json').write_text(
    json.dumps(settings | {'tokenizer_class': 'T5Tokenizer'})
  )
  transformers.T5Tokenizer.from_pretrained(made).save_pretrained(tmp_path)
  theirs = original.HFTokenizer(str(tmp_path), context_length=64, clean='canonicalize')
  ours = tokens.load_tokenizer(as_open_clip(tmp_path))
  compare(ours.encode(UNEQUAL, 64)[0], theirs(UNEQUAL).numpy(), UNEQUAL)


@pytest.fixture(scope='module')
def gemma(tmp_path_factory):
  """A folder of SigLIP 2's, its tokenizer.json trained here with the parts of Gemma's."""
  folder, special = tmp_path_factory.mktemp('gemma'), ['<pad>', '<eos>', '<bos>', '<unk>', '<mask>']
  model = tokenizers.Tokenizer(
    tokenizers.models.BPE(byte_fallback=True, fuse_unk=True, unk_token='<unk>')
  )
  model.normalizer = tokenizers.normalizers.Replace(' ', '▁')
  model.pre_tokenizer = tokenizers.pre_tokenizers.Split(' ', 'merged_with_previous')
  each = [f'<0x{i:02X}>' for i in range(256)]
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=3000, special_tokens=special + each, limit_alphabet=300, show_progress=False
  )
  model.train_from_iterator(STRINGS, trainer)
  model.post_processor = tokenizers.processors.TemplateProcessing(
    single='$A <eos>', special_tokens=[('<eos>', 1)]
  )
  stored = json.loads(model.to_str())
  stored['added_tokens'] = [x for x in stored['added_tokens'] if x['content'] in special]
  (folder / 'tokenizer.json').write_text(json.dumps(stored))
  (folder / 'config.json').write_text('{"model_type": "siglip"}')
  settings = {f'{name[1:-1]}_token': name for name in special} | {'padding_side': 'right'}
  settings |= {'tokenizer_class': 'GemmaTokenizer', 'add_bos_token': False, 'add_eos_token': True}
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  return folder


def test_siglip2(gemma, original, tmp_path):
  ours = tokens.load_tokenizer(gemma)
  ids, mask = ours.encode(STRINGS, 64)
  theirs = transformers.Siglip2Tokenizer.from_pretrained(gemma)
  compare(ids, padded(theirs, STRINGS, 64), STRINGS)
  # Gemma's own class leaves lowering to whoever prepares the texts.
  lower = [tokenizers.normalizers.Lowercase().normalize_str(text) for text in STRINGS]
  theirs = transformers.GemmaTokenizer.from_pretrained(gemma)
  compare(ids, padded(theirs, lower, 64), STRINGS)
  assert (ids[np.arange(COUNT), mask.sum(1) - 1] == 1).all() and not ids[~mask].any()
  shutil.copytree(gemma, tmp_path, dirs_exist_ok=True)
  theirs = original.HFTokenizer(str(gemma), context_length=64, clean='canonicalize')
  ours = tokens.load_tokenizer(as_open_clip(tmp_path))
  compare(ours.encode(STRINGS, 64)[0], theirs(STRINGS).numpy(), STRINGS)
