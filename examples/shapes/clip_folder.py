"""A small CLIP as Hugging Face lays one out: config, vocabulary and weights in a folder."""

import json
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
import tokenizers
from flax.traverse_util import flatten_dict
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Whitespace
from tokenizers.trainers import BpeTrainer

from alpro_jax.weights import tables, tensor_files, tower_names

_SPECIAL = ('<|startoftext|>', '<|endoftext|>')


def write_vocabulary(folder: str | pathlib.Path, texts: Iterable[str], size: int) -> int:
  """Writes vocab.json and merges.txt of a byte pair encoding of texts, in CLIP's order.

  Bytes come first, then bytes that end a word, merges, and the begin and the end of a text;
  with config.json, which says that they are a CLIP's.

  Args:
    size: of the vocabulary at most, and above 514.
  Returns:
    The id of the end of a text, which is the last one.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  model = tokenizers.Tokenizer(BPE(end_of_word_suffix='</w>'))
  model.pre_tokenizer = Sequence([Whitespace(), ByteLevel(add_prefix_space=False, use_regex=False)])
  letters = sorted(ByteLevel.alphabet())
  # The trainer counts letters at the end of a word only where it met some.
  trainer = BpeTrainer(
    vocab_size=size, end_of_word_suffix='</w>', initial_alphabet=letters, show_progress=False
  )
  model.train_from_iterator(texts, trainer)
  model.model.save(str(folder))
  merges = [x for x in (folder / 'merges.txt').read_text().split('\n') if x and x[0] != '#']
  merges = merges[: size - 2 * len(letters) - len(_SPECIAL)]
  pieces = [*letters, *(f'{x}</w>' for x in letters), *(x.replace(' ', '') for x in merges)]
  vocabulary = {piece: i for i, piece in enumerate([*pieces, *_SPECIAL])}
  (folder / 'vocab.json').write_text(json.dumps(vocabulary, ensure_ascii=False))
  (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *merges, '']))
  (folder / 'config.json').write_text(json.dumps({'model_type': 'clip'}))
  return len(vocabulary) - 1


def write_weights(folder: str | pathlib.Path, params: Mapping, config) -> None:
  """Writes model.safetensors and what transformers.CLIPModel and processors need beside it.

  Args:
    folder: with a vocabulary.
    params: of a model without time and without a BERT.
    config: its AlproConfig.
  """
  folder, video, text = pathlib.Path(folder), config.video, config.text_tower
  rows = tower_names.video_rows('transformers', vars(video), flat_patches=False)
  rows += tower_names.text_rows('transformers', vars(text))
  for theirs, ours in (('visual', 'video'), ('text', 'text')):
    rows += tables.rows_of([(tower_names.NO_BIAS, f'{theirs}_projection', f'{ours}_projection')])
  flat = {path: np.asarray(x) for path, x in flatten_dict(params, sep='/').items()}
  tensors = {row.original: row.layout.to_original(*(flat.pop(x) for x in row.ours)) for row in rows}
  tensors['logit_scale'] = -np.log(flat.pop('temperature'))
  if flat:
    raise ValueError(f'a CLIP of Hugging Face has no tensors for {sorted(flat)}.')
  tensor_files.write_tensors(folder / 'model.safetensors', tensors)

  def section(tower, **others):
    return {
      'hidden_size': tower.width,
      'intermediate_size': tower.mlp_size,
      'num_hidden_layers': tower.depth,
      'num_attention_heads': tower.heads,
      'hidden_act': tower.activation,
      'layer_norm_eps': tower.epsilon,
      'projection_dim': config.embed_size,
      **others,
    }

  vision = section(video, image_size=video.image_size, patch_size=video.patch_size)
  words = section(
    text,
    vocab_size=text.vocab_size,
    max_position_embeddings=text.max_positions,
    bos_token_id=text.vocab_size - 2,
    eos_token_id=text.vocab_size - 1,
  )
  size = {'shortest_edge': video.image_size}
  processor = {'do_center_crop': True, 'size': size}
  processor |= {'image_mean': video.pixel_mean, 'image_std': video.pixel_std}
  for name, said in (
    (
      'config.json',
      {
        'model_type': 'clip',
        'architectures': ['CLIPModel'],
        'projection_dim': config.embed_size,
        'vision_config': vision,
        'text_config': words,
      },
    ),
    ('preprocessor_config.json', processor),
  ):
    (folder / name).write_text(json.dumps(said, indent=1) + '\n')
