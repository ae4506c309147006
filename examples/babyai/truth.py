"""What truth.jsonl of BabyAI says of a clip, as the study asks it; see its measure.py."""

from examples.babyai import scenes, words


def kinds(row):
  return [thing['kind'] for thing in row['objects']]


def places(row):
  """In the middle of their tiles."""
  return [
    [
      (thing['kind'], (thing['x'] + 0.5) / scenes.TILES, (thing['y'] + 0.5) / scenes.TILES)
      for thing in frame['objects']
    ]
    for frame in row['frames']
  ]


def opposites(row):
  """Two actions, and the same in the other order."""
  done = [action['object'] for action in row['actions']]
  if len(set(done)) != 2:
    return None
  both = (row['actions'], row['actions'][::-1])
  return tuple(dict(words.captions(row | {'actions': one}, None, 0.0))['action'] for one in both)
