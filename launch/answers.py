"""Lists the answers of a prepared set's questions, most frequent first.

  python launch/answers.py --data=sets/msrvtt --output=sets/answers.txt
  python launch/answers.py --data=sets/msrvtt --limit=1500 \\
    --output=sets/answers.txt

Question answering chooses among these. Questions with another answer are not
trained, and count as wrong when they are evaluated. Answers are written in
lower case, with single blanks and in one form of Unicode (NFKC): that is how
they are compared, in training and in evaluation.
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

from absl import flags

from alpro_jax.data import annotations, answers, dataset

_DATA = flags.DEFINE_string('data', None, 'Prepared set.', required=True)
_SPLIT = flags.DEFINE_string('split', 'train', 'Split of the questions.')
_OUTPUT = flags.DEFINE_string('output', None, 'File to write, one answer a line.', required=True)
_LIMIT = flags.DEFINE_integer('limit', 0, 'How many answers; 0 is all.')


def main():
  # Frames are not looked at, so their digests need no check.
  records = dataset.open_dataset(_DATA.value, _SPLIT.value, verify=False).metadata()
  asked = [question.answer for record in records for question in record.questions]
  counted = answers.count_answers(asked, _LIMIT.value)
  answers.write_answers([answer for answer, _ in counted], _OUTPUT.value)
  covered = sum(count for _, count in counted)
  print(
    f'{len(counted)} answers to {len(asked)} questions -> '
    f'{_OUTPUT.value}; they answer {100 * covered / len(asked):.1f} %.'
  )
  for answer, count in counted[:10]:
    print(f'  {count:8d}  {annotations.printable(answer)}')


if __name__ == '__main__':
  command.run(main, in_buckets=True)
