"""What truth.jsonl of Meta-World says of a clip, as the study asks it; see its measure.py."""

from examples.metaworld import tasks, words

kinds = words.things


def places(row):
  """Meta-World observes one or two things of each task, and no others."""
  names = tasks.OBSERVED.get(row['task'], (row['thing'],))
  return [
    [(name, *place) for name, place in zip(names, frame['objects'], strict=False)]
    for frame in row['frames']
  ]


def opposites(row):
  """The action and what it would be backwards, if that is a task as well."""
  if not row['success'] or not tasks.TASKS[row['task']].undone:
    return None
  verb, _, place = tasks.shown(row['task'], not row['backwards'])
  both = (row, row | {'verb': verb, 'place': place})
  said = [dict(words.captions(one, None, 0.0))['action'] for one in both]
  if said[0] == said[1]:  # Sliding into a goal, and out of it.
    said = [f'{text} {one["place"]}' for text, one in zip(said, both, strict=True)]
  return tuple(said)
