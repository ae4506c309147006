"""Files of the original's small model, put together from tests/golden."""

import numpy as np

from alpro_jax.weights import tables, tensor_files
from tests.golden import trim

CLASSES, ENTITIES = 400, 20


def read(state, config):
  """{path: array} of our parameters, from arrays by their names in the original."""
  used, _ = tables.split(tensor_files.named(state), config)
  return tables.read_params(used, tables.rename_table(config))


def student():
  """The recorded model's tensors, without what nothing reads."""
  return {
    name: array
    for name, array in trim.unpack(trim.FILE)[0].items()
    if not name.startswith('prompter.')
  }


def whole(model):
  """Adds what a state dict has beside, at the places where PyTorch has it."""
  rng = np.random.default_rng(0)
  state, predictions = {}, 'text_encoder.cls.predictions'
  for name, array in model.items():
    if name.endswith('embeddings.word_embeddings.weight'):
      ids = name.replace('word_embeddings.weight', 'position_ids')
      places = model[name.replace('word', 'position')]
      state[ids] = np.arange(len(places), dtype=np.int64)[None]
    state[name] = array
    if name == 'visual_encoder.model.norm.bias':
      head = 'visual_encoder.model.head'
      state[f'{head}.weight'] = rng.normal(size=(CLASSES, len(array))).astype(np.float32)
      state[f'{head}.bias'] = np.zeros(CLASSES, np.float32)
    if name == f'{predictions}.transform.LayerNorm.bias':
      state[f'{predictions}.decoder.weight'] = model[
        'text_encoder.bert.embeddings.word_embeddings.weight'
      ]
      state[f'{predictions}.decoder.bias'] = model[f'{predictions}.bias']
  return state


def prompter():
  """A prompter's file."""
  model = {n: a for n, a in student().items() if not n.startswith('mpm_head.')}
  # Not the student's numbers.
  model = {name: array + np.float32(0.25) for name, array in model.items()}
  rows = np.linspace(0, 1, ENTITIES * 256, dtype=np.float32)
  bank = {
    f'{kind}_prompt_feat': rows.reshape(ENTITIES, 256) * (1 + i)
    for i, kind in enumerate(('video', 'image'))
  }
  state = whole(model)
  return {'temp': state['temp'], **bank, **state}


def pretrain():
  """A pre-trained file: student, prompter, head for entities."""
  state = whole(student())
  heads = {name: state.pop(name) for name in list(state) if name.startswith('mpm_head.')}
  teacher = {f'prompter.{name}': array for name, array in prompter().items()}
  return state | teacher | heads


def retrieval():
  return whole(
    {name: array for name, array in student().items() if not name.startswith('mpm_head.')}
  )


def question_answering():
  """With the classifier of 15 labels."""
  model = {
    name.replace('text_encoder.bert.', 'text_encoder.'): array
    for name, array in student().items()
    if not name.startswith(('mpm_head.', 'text_encoder.cls.'))
  }
  return whole(model) | trim.unpack(trim.ANSWERS_FILE)[0]


def lavis(state):
  """The names that LAVIS gives a model: a bare BERT, no head for words."""
  return {
    name.replace('text_encoder.bert.', 'text_encoder.'): array
    for name, array in state.items()
    if '.cls.' not in name and '.head.' not in name
  }


def vit():
  """The spatial part of the video encoder, as timm names a ViT."""
  prefix = 'visual_encoder.model.'
  state = {
    name.removeprefix(prefix): array
    for name, array in student().items()
    if name.startswith(prefix) and 'time' not in name and 'temporal' not in name
  }
  width = len(state['norm.weight'])
  return state | {
    'head.weight': np.ones((1000, width), np.float32),
    'head.bias': np.ones(1000, np.float32),
  }


def vit_npz(heads=4):
  """The same in the names and layouts of the ViT's authors."""
  timm = vit()
  width = len(timm['norm.weight'])
  state = {
    'cls': timm['cls_token'],
    'Transformer/posembed_input/pos_embedding': timm['pos_embed'],
    'embedding/kernel': timm['patch_embed.proj.weight'].transpose(2, 3, 1, 0),
    'embedding/bias': timm['patch_embed.proj.bias'],
    'Transformer/encoder_norm/scale': timm['norm.weight'],
    'Transformer/encoder_norm/bias': timm['norm.bias'],
    'head/kernel': timm['head.weight'].T,
    'head/bias': timm['head.bias'],
  }
  for i in range(sum(name.endswith('.norm1.bias') for name in timm)):
    block, theirs = f'blocks.{i}', f'Transformer/encoderblock_{i}'
    for ours, norm in (('norm1', 'LayerNorm_0'), ('norm2', 'LayerNorm_2')):
      state[f'{theirs}/{norm}/scale'] = timm[f'{block}.{ours}.weight']
      state[f'{theirs}/{norm}/bias'] = timm[f'{block}.{ours}.bias']
    for j in range(2):
      dense = f'{theirs}/MlpBlock_3/Dense_{j}'
      state[f'{dense}/kernel'] = timm[f'{block}.mlp.fc{j + 1}.weight'].T
      state[f'{dense}/bias'] = timm[f'{block}.mlp.fc{j + 1}.bias']
    attention = f'{theirs}/MultiHeadDotProductAttention_1'
    for j, part in enumerate(('query', 'key', 'value')):
      rows = slice(j * width, (j + 1) * width)
      state[f'{attention}/{part}/kernel'] = timm[f'{block}.attn.qkv.weight'][rows].T.reshape(
        width, heads, -1
      )
      state[f'{attention}/{part}/bias'] = timm[f'{block}.attn.qkv.bias'][rows].reshape(heads, -1)
    state[f'{attention}/out/kernel'] = timm[f'{block}.attn.proj.weight'].T.reshape(heads, -1, width)
    state[f'{attention}/out/bias'] = timm[f'{block}.attn.proj.bias']
  return state


def bert():
  """The text side, as Hugging Face names a BERT of Google's."""
  prefix = 'text_encoder.'
  state = {
    name.removeprefix(prefix)
    .replace('LayerNorm.weight', 'LayerNorm.gamma')
    .replace('LayerNorm.bias', 'LayerNorm.beta'): array
    for name, array in student().items()
    if name.startswith(prefix)
  }
  width = state['bert.embeddings.LayerNorm.gamma'].shape[0]
  return state | {
    'bert.pooler.dense.weight': np.ones((width, width), np.float32),
    'bert.pooler.dense.bias': np.ones(width, np.float32),
    'cls.seq_relationship.weight': np.ones((2, width), np.float32),
    'cls.seq_relationship.bias': np.ones(2, np.float32),
  }


def write_vocabulary(folder) -> None:
  """Writes a vocab.txt with as many words as these files have vectors for."""
  words = len(student()['text_encoder.bert.embeddings.word_embeddings.weight'])
  pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
  pieces += [f'w{i}' for i in range(words - len(pieces))]
  (folder / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
