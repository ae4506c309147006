"""Tokenizers: rows, truncation, special pieces, training."""

import hashlib
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers

from alpro_jax.data import tokens, tower_tokens
from configs import common
from tests import small_towers

CAPTIONS = [
  f'a {colour} {shape} moves {way}'
  for colour in ('red', 'green', 'blue')
  for shape in ('disc', 'ring')
  for way in ('left', 'right', 'up', 'down')
]
VOCAB = [
  '[PAD]',
  '[unused0]',
  '[UNK]',
  '[CLS]',
  '[SEP]',
  '[MASK]',
  'a',
  'dog',
  'run',
  '##s',
  ',',
  'cafe',
  '[',
  ']',
  'mask',
]


@pytest.fixture(scope='module')
def wordpiece(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocab') / 'vocab.txt'
  path.write_text('\n'.join(VOCAB) + '\n')
  return tokens.load_tokenizer(path)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  path = tmp_path_factory.mktemp('model') / 'new' / 'captions.model'
  return tokens.train_sentencepiece(CAPTIONS, path, 90)


def test_wordpiece_rows_by_hand(wordpiece):
  ids, mask = wordpiece.encode(['A dog runs', '', 'a, a, a, a', 'Café zebra'], 7)
  np.testing.assert_array_equal(
    ids,
    [[3, 6, 7, 8, 9, 4, 0], [3, 4, 0, 0, 0, 0, 0], [3, 6, 10, 6, 10, 6, 4], [3, 11, 2, 4, 0, 0, 0]],
  )
  np.testing.assert_array_equal(mask.sum(1), [6, 2, 7, 4])
  assert (mask[:, :1] & (np.diff(mask.astype(int)) <= 0).all()).all()
  assert ids.dtype == np.int32 and mask.dtype == bool
  assert wordpiece.special == (0, 2, 3, 4, 5)
  assert wordpiece.vocab_size == len(VOCAB) and len(wordpiece.digest) == 64
  assert wordpiece.decode(ids[0]) == 'a dog runs'


def test_a_special_name_in_a_caption_is_plain_text(wordpiece, trained):
  ids, _ = wordpiece.encode(['[MASK]'], 8)
  np.testing.assert_array_equal(ids[0, :5], [3, 12, 14, 13, 4])
  ids, _ = trained.encode(['[MASK] [PAD] [SEP]'], 40)
  assert (ids[0] == trained.special.mask).sum() == 0
  assert (ids[0] == trained.special.sep).sum() == 1


def test_sentencepiece_learns_whole_words(trained):
  assert trained.special == (0, 1, 2, 3, 4)
  ids, mask = trained.encode(['A red disc moves LEFT', 'a blue ring'], 12)
  assert mask.sum(1)[0] <= 8
  assert trained.decode(ids[0]) == 'a red disc moves left'
  assert trained.decode(ids[1]) == 'a blue ring'
  assert ids.max() < trained.vocab_size <= 90


def test_training_is_deterministic(trained, tmp_path):
  again = tokens.train_sentencepiece(CAPTIONS, tmp_path / 'x.model', 90)
  assert again.digest == trained.digest
  loaded = tokens.load_tokenizer(tmp_path / 'x.model')
  assert loaded.digest == trained.digest


def test_a_large_vocabulary_is_lowered_and_a_small_one_refused(tmp_path):
  model = tokens.train_sentencepiece(CAPTIONS, tmp_path / 'x.model', 5000)
  assert 30 < model.vocab_size < 300
  with pytest.raises(ValueError, match='every letter needs one'):
    tokens.train_sentencepiece(CAPTIONS, tmp_path / 'y.model', 12)
  with pytest.raises(ValueError, match='no captions'):
    tokens.train_sentencepiece([' '], tmp_path / 'y.model', 12)
  with pytest.raises(ValueError, match='must end in .model'):
    tokens.train_sentencepiece(CAPTIONS, tmp_path / 'y.spm', 90)
  assert not (tmp_path / 'y.model').exists()


def test_trains_from_an_even_spread(tmp_path):
  texts = ['aa'] * 50 + ['bb'] * 50
  model = tokens.train_sentencepiece(texts, tmp_path / 'x.model', 50, max_captions=4)
  ids, _ = model.encode(['aa', 'bb'], 6)
  assert (ids != model.special.unk).all()


def test_long_captions_and_marks_of_the_trainer_are_learned(tmp_path):
  long = ' '.join(f'zebra {n}' for n in range(800))  # 7,090 bytes.
  assert len(long.encode()) > 4192
  model = tokens.train_sentencepiece(
    [*CAPTIONS, long, 'a \u2585 xylophone'], tmp_path / 'x.model', 500
  )
  for word in ('zebra', 'xylophone'):
    ids, mask = model.encode([word], 16)
    assert model.special.unk not in ids
    assert model.decode(ids[0]) == word
  # Alone they are no reason to ask for more pieces.
  model = tokens.train_sentencepiece([long], tmp_path / 'y.model', 500)
  assert model.decode(model.encode(['zebra 7'], 16)[0][0]) == 'zebra 7'


def test_texts_that_are_cut_are_counted(wordpiece, trained):
  texts = ['a', 'a dog', 'a dog a', 'a dog runs', '']
  # Three tokens fit between [CLS] and [SEP]; "runs" is two.
  assert tokens.count_cut(wordpiece, texts, 5) == 1
  assert tokens.count_cut(wordpiece, texts, 4) == 2
  assert tokens.count_cut(trained, ['a', 'a red disc'], 4) == 1


def test_rows_of_a_tower_by_hand(tmp_path):
  tower = tokens.load_tokenizer(small_towers.write(tmp_path))
  a, n, s, amp = (256 + ord(x) - ord('!') for x in 'ans&')  # Where they end a word.
  dog, ru, begin, end = 513, 514, 515, 516
  ids, mask = tower.encode(['A &amp;  DOG', '', 'a ' * 9, 'ruN<end_of_text>s'], 6)
  np.testing.assert_array_equal(
    ids,
    [
      [begin, a, amp, dog, end, 0],
      [begin, end, 0, 0, 0, 0],
      [begin, a, a, a, a, end],
      [begin, ru, n, end, s, end],
    ],
  )
  np.testing.assert_array_equal(mask.sum(1), [5, 2, 6, 6])
  assert ids.dtype == np.int32 and mask.dtype == bool
  assert tower.vocab_size == 517 and tower.special == (0, -1, begin, end, -1)
  assert tower.rules.context == 8 and tower.decode(ids[0]) == 'a & dog'
  assert tokens.count_cut(tower, ['a', 'a a', 'dog dog dog'], 4) == 1
  with pytest.raises(ValueError, match='max_tokens=2 leaves no room.*max_tower_tokens'):
    tower.encode(['a'], 2)


def test_a_family_reads_the_same_vocabulary_by_its_own_rules(tmp_path):
  path = small_towers.write(tmp_path) / small_towers.FILE
  # a & am p ; dog: as transformers reads CLIP's texts, where & was not unescaped.
  clip = tower_tokens.load(path, family='clip')
  row = [515, 320, 261, 64, 76, 335, 282, 513, 516]
  assert clip.encode(['A &amp; dog'], 10)[0].tolist() == [[*row, 516]]
  assert clip.rules.context == 8  # Of open_clip_config.json.
  pe = tower_tokens.load(path, family='pe_core', context=32)
  assert pe.encode(['A &amp; dog'], 6)[0].tolist() == [[515, 320, 261, 513, 516, 0]]
  assert pe.rules.context == 32 and pe.digest != clip.digest
  (tmp_path / 'own').mkdir()
  (tmp_path / 'own' / tower_tokens.FILE).write_bytes(pe.content)
  for again in (tmp_path / 'own', tmp_path / 'own' / tower_tokens.FILE):
    assert tokens.load_tokenizer(again).digest == pe.digest


def test_siglip_by_hand(tmp_path):
  with open(tmp_path / 'spiece.model', 'wb') as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(CAPTIONS),
      model_writer=file,
      vocab_size=60,
      model_type='unigram',
      hard_vocab_limit=False,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      minloglevel=2,
    )
  said = {'tokenizer_class': 'SiglipTokenizer', 'pad_token': {'content': '</s>'}}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(said))
  config = {'model_type': 'siglip', 'text_config': {'max_position_embeddings': 9}}
  (tmp_path / 'config.json').write_text(json.dumps(config))
  one = tokens.load_tokenizer(tmp_path)
  ids, mask = one.encode(['a disc', ' A, DISC!', '', 'a ' * 20, 'é'], 5)
  # Padding is read, so that rows have what the tower has, and is the end again.
  assert ids.shape == (5, 9) and one.special == (1, 2, -1, 1, -1)
  np.testing.assert_array_equal(ids[0], ids[1])
  assert one.decode(ids[1]) == 'a disc' and (ids[2] == 1).all()
  assert ids[3, -1] == 1 and 1 not in ids[3, :-1] and 2 in ids[4]
  np.testing.assert_array_equal(mask.sum(1)[2:4], [1, 9])


def test_siglip2_by_hand(tmp_path):
  special = ['<pad>', '<eos>', '<bos>', '<unk>']
  vocab = {x: i for i, x in enumerate([*special, *'▁abcdo,', 'co', 'do', '▁do'])}
  merges = [('c', 'o'), ('d', 'o'), ('▁', 'do')]
  model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, unk_token='<unk>'))
  model.normalizer = tokenizers.normalizers.Replace(' ', '▁')
  model.add_special_tokens(special)
  model.enable_padding(length=30)  # Which is the family's to decide.
  model.save(str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'config.json').write_text('{"model_type": "siglip2"}')
  (tmp_path / 'tokenizer_config.json').write_text('{"tokenizer_class": "GemmaTokenizerFast"}')
  one = tokens.load_tokenizer(tmp_path)
  ids, mask = one.encode(['A do, z', '<bos>a'], 64)
  assert ids[:, :6].tolist() == [[5, 13, 10, 4, 3, 1], [2, 5, 1, 0, 0, 0]]
  assert ids.shape == (2, 64) and mask.sum(1).tolist() == [6, 3]
  assert one.special == (0, 3, -1, 1, -1) and not ids[:, 6:].any()


@pytest.mark.parametrize(
  'files, options, match',
  [
    ({}, {}, 'does not say which family.*one of .*pe_core'),
    ({'config.json': '{"model_type": "siglip"}'}, {}, 'does not say which family'),
    ({'config.json': '{"model_type": '}, {}, 'config.json is damaged'),
    ({}, {'family': 'blip'}, "family='blip' must be one of"),
    ({'tokenizer.json': '{}'}, {'family': 'clip'}, 'tokenizer.json is no tokenizer of clip'),
    ({'vocab.json': '{"a": 0}', 'merges.txt': ''}, {'family': 'clip'}, 'vocab.json is no .*start'),
    ({'tower.json': '{"rules": {}}'}, {}, 'tower.json is no tokenizer of a text tower'),
    ({'spiece.model': 'x'}, {'family': 'siglip'}, 'spiece.model is no tokenizer of siglip'),
  ],
)
def test_refuses_folders_without_a_tokenizer(files, options, match, tmp_path):
  for name, content in files.items():
    (tmp_path / name).write_text(content)
  with pytest.raises(ValueError, match=match):
    tower_tokens.load(tmp_path, **options)


def test_names_the_files_that_it_looked_for(tmp_path):
  with pytest.raises(FileNotFoundError, match='expected tower.json, .*tokenizer.json'):
    tower_tokens.load(tmp_path, family='siglip2')
  with pytest.raises(FileNotFoundError, match='expected tower.json'):
    tokens.load_tokenizer(tmp_path / 'none' / 'tower.json')
  model = json.loads(tower_tokens.load(small_towers.write(tmp_path)).content)
  (tmp_path / 'tokenizer.json').write_text(json.dumps(model['tokenizer']))
  with pytest.raises(ValueError, match="no pieces .'</s>'"):
    tower_tokens.load(tmp_path / 'tokenizer.json', family='siglip')


def test_a_model_reads_with_what_its_encoders_need(wordpiece, tmp_path):
  config, folder = common.get_config('tiny'), str(small_towers.write(tmp_path / 'weights'))
  config.data.update({'tokenizer': str(wordpiece.path), 'max_tower_tokens': 6})
  assert isinstance(tokens.load_tokenizers(config), tokens.Tokenizer)
  with config.unlocked():
    config.model.text_tower = {'vocab_size': 517}
  config.data.tower_tokenizer = folder
  pair = tokens.load_tokenizers(config)
  assert tokens.parts(pair) == (pair.text, pair.tower) and pair.special == wordpiece.special
  ids, mask, tower = pair.encode(['a dog', ''], 7)
  for ours, theirs in zip((ids, mask), wordpiece.encode(['a dog', ''], 7), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  np.testing.assert_array_equal(tower, pair.tower.encode(['a dog', ''], 6)[0])
  assert tokens.count_cut(pair, ['a dog', 'a dog a dog'], 4) == 1
  config.model.text_tower.vocab_size = 516
  with pytest.raises(ValueError, match='has 517 ids, but tower.vocab_size=516'):
    tokens.load_tokenizers(config)
  del config.model.text
  alone = tokens.load_tokenizers(config)
  assert tokens.parts(alone) == (alone,) and alone.digest == pair.tower.digest
  config.data.update({'tokenizer': '', 'tower_tokenizer': ''})
  with pytest.raises(FileNotFoundError, match='pass --config.data.tower_tokenizer='):
    tokens.load_tokenizers(config)


def test_refuses_files_that_are_no_tokenizer(tmp_path):
  with pytest.raises(FileNotFoundError, match='--config.data.tokenizer='):
    tokens.load_tokenizer(tmp_path / 'none.txt')
  (tmp_path / 'a.bin').write_text('{}')
  with pytest.raises(ValueError, match="ends in '.bin'"):
    tokens.load_tokenizer(tmp_path / 'a.bin')
  (tmp_path / 'a.model').write_text('no model')
  with pytest.raises(ValueError, match='no SentencePiece model'):
    tokens.load_tokenizer(tmp_path / 'a.model')
  (tmp_path / 'a.txt').write_text('[PAD]\n[UNK]\n[CLS]\nword\n')
  with pytest.raises(ValueError, match=r"lacks \['\[SEP\]', '\[MASK\]'\]"):
    tokens.load_tokenizer(tmp_path / 'a.txt')
  (tmp_path / 'a.txt').write_text('\n'.join(VOCAB + ['dog']))
  with pytest.raises(ValueError, match="lists 'dog' twice"):
    tokens.load_tokenizer(tmp_path / 'a.txt')


def test_refuses_a_model_without_special_pieces(tmp_path):
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CAPTIONS),
    model_prefix=str(tmp_path / 'plain'),
    vocab_size=60,
    hard_vocab_limit=False,
    model_type='bpe',
    minloglevel=2,
  )
  with pytest.raises(ValueError, match=r'lacks \[.*\[MASK\]'):
    tokens.load_tokenizer(tmp_path / 'plain.model')


def test_refuses_rows_without_room(wordpiece):
  with pytest.raises(ValueError, match='set data.max_text_tokens'):
    wordpiece.encode(['a'], 2)


# A no-break space, separators of lines and a vertical tab are letters here.
ODD = ['\u2028', '\x85', '\u2029', '\x0b', '\x1c', '\u00a0']


@pytest.mark.parametrize('end', ['\n', '\r\n'])
@pytest.mark.parametrize('mark', ['', '\ufeff'])
def test_only_newlines_end_a_piece(tmp_path, end, mark):
  pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *ODD, 'dog', 'cat']
  path = tmp_path / 'vocab.txt'
  path.write_bytes((mark + end.join(pieces) + end).encode())
  model = tokens.load_tokenizer(path)
  assert model.special == (0, 1, 2, 3, 4)
  assert model.vocab_size == len(pieces)
  ids, _ = model.encode(['cat dog'], 4)
  np.testing.assert_array_equal(ids, [[2, 12, 11, 3]])
  assert model.digest == hashlib.sha256(path.read_bytes()).hexdigest()
