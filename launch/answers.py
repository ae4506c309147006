"""Lists the answers of a prepared set's questions, most frequent first."""

import argparse
import sys

from alpro_jax.data import annotations, answers, dataset

EXAMPLES = """
examples:
    python launch/answers.py --data=sets/msrvtt --output=sets/answers.txt
    python launch/answers.py --data=sets/msrvtt --limit=1500 \\
      --output=sets/answers.txt

Question answering chooses among these. Questions with another answer are not
trained, and count as wrong when they are evaluated. Answers are written in
lower case, with single blanks and in one form of Unicode (NFKC): that is how
they are compared, in training and in evaluation.
"""


def _parser():
  parser = argparse.ArgumentParser(
      prog='python launch/answers.py', description=__doc__, epilog=EXAMPLES,
      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  add = parser.add_argument
  add('--data', required=True, help='prepared set')
  add('--split', default='train', help='split of the questions (train)')
  add('--output', required=True, help='file to write, one answer a line')
  add('--limit', type=int, default=0, help='how many answers; 0 is all (0)')
  return parser


def main(argv=None):
  options = _parser().parse_args(argv)
  # Frames are not looked at, so their digests need no check.
  records = dataset.open_dataset(
      options.data, options.split, verify=False).metadata()
  asked = [question.answer for record in records
           for question in record.questions]
  counted = answers.count_answers(asked, options.limit)
  answers.write_answers([answer for answer, _ in counted], options.output)
  covered = sum(count for _, count in counted)
  print(f'{len(counted)} answers to {len(asked)} questions -> '
        f'{options.output}; they answer {100 * covered / len(asked):.1f} %.')
  for answer, count in counted[:10]:
    print(f'  {count:8d}  {annotations.printable(answer)}')


if __name__ == '__main__':
  try:
    main()
  except (OSError, ValueError) as e:
    sys.exit(f'answers: {annotations.printable_lines(e)}')
