"""lm-eval task files over a few rows of their own: a generation task, a group of two multiple-choice tasks, and two
that run programs, of which one has no data.

Prompts show two examples, drawn anew for each document.
"""

from __future__ import annotations

import json
from pathlib import Path

WORDS = ["Paris", "list", "sum", "train", "miles", "function", "capital", "hours", "numbers", "France"]
ROWS = 7

DATA = """
dataset_path: json
dataset_kwargs:
  data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}
  cache_dir: {folder}/cache
training_split: train
fewshot_split: train
test_split: test
num_fewshot: 2
doc_to_text: "Which word is number {{{{number}}}}?"
"""
# A random model answers nothing right, so that its texts are compared by a number that they differ in.
GENERATION = """
task: tiny_generation
output_type: generate_until
doc_to_target: "{{words[0]}}"
process_results: !function tiny_scoring.distinct
generation_kwargs: {until: ["Which"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: distinct, aggregation: mean, higher_is_better: true}]
"""
CHOICE = """
task: tiny_choice_{kind}
output_type: multiple_choice
doc_to_choice: "{{{{words}}}}"
doc_to_target: {target}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
GROUP = """
group: tiny_choice
task: [tiny_choice_first, tiny_choice_last]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
CODE = """
task: tiny_code
dataset_path: no/such-programs
unsafe_code: true
output_type: generate_until
test_split: test
doc_to_text: "{{text}}"
doc_to_target: "{{text}}"
"""
PROGRAM = """
task: tiny_program
unsafe_code: true
output_type: generate_until
doc_to_target: "{{number}}"
process_results: !function tiny_programs.passed
generation_kwargs: {until: ["Which"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: passed, aggregation: mean, higher_is_better: true}]
"""
# As lm-eval's own code tasks do: the metric is loaded and tried with the task.
PROGRAMS = """
import evaluate

code_eval = evaluate.load("code_eval")


def run(program, number):
    tests = [f"assert plus_one({number}) == {number + 1}"]
    return code_eval.compute(references=tests, predictions=[[program]], k=[1])[0]["pass@1"]


run("def plus_one(n): return n", 1)


def passed(doc, results):
    return {"passed": run(results[0], doc["number"])}
"""
# Without a last character that is cut short, which backends show differently.
SCORING = "def distinct(doc, results):\n    return {'distinct': len(set(results[0].rstrip('\\ufffd')))}\n"


def write_tiny_tasks(folder: Path) -> Path:
    """Write the task files and their rows; returns the folder."""
    folder.mkdir(exist_ok=True)
    for split, start in (("train", 0), ("test", 3)):
        rows = [{"number": row, "words": [WORDS[(row + shift) % 10] for shift in (start, 5, 8)]} for row in range(ROWS)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DATA.format(folder=folder)
    (folder / "tiny_scoring.py").write_text(SCORING)
    (folder / "generation.yaml").write_text(data + GENERATION)
    for kind, target in (("first", 0), ("last", 2)):
        (folder / f"{kind}.yaml").write_text(data + CHOICE.format(kind=kind, target=target))
    (folder / "group.yaml").write_text(GROUP)
    (folder / "code.yaml").write_text(CODE)
    (folder / "tiny_programs.py").write_text(PROGRAMS)
    (folder / "program.yaml").write_text(data + PROGRAM)
    return folder
