import pytest
from transformers import AutoTokenizer

from selfmoe_ray.domains.prompt import format_prompt
from selfmoe_ray.errors import UserError
from selfmoe_ray.run.records import Example
from selfmoe_ray.training.dataset import IGNORED, collate, draw_share, split_held_out, tokenize, tokenize_all


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir())


def example(number: int = 0, output: str = "Paris") -> Example:
    return Example(f"geo/0/0/{number}", "geo", "What is the capital?", "", output)


def test_row_is_bos_prompt_response_eos_and_only_the_response_is_learnt(tokenizer):
    row = tokenize(example(output=" Paris \n"), tokenizer, 512)
    learnt = [label for label in row.labels if label != IGNORED]
    prompt = row.input_ids[: -len(learnt)]
    assert prompt[0] == tokenizer.bos_token_id and row.input_ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(prompt[1:]) == format_prompt("What is the capital?", "")
    assert tokenizer.decode(learnt[:-1]) == "Paris" and learnt[-1] == tokenizer.eos_token_id
    assert row.labels[-len(learnt) :] == row.input_ids[-len(learnt) :]
    assert row.response_tokens == len(learnt)


def test_long_rows_lose_their_end_and_eos_and_rows_without_response_are_dropped(tokenizer):
    whole = tokenize(example(), tokenizer, 512)
    length = len(whole.input_ids)
    prompt = length - whole.response_tokens
    assert tokenize(example(), tokenizer, length) == whole
    cut = tokenize(example(), tokenizer, prompt + 1)
    assert cut.input_ids == whole.input_ids[: prompt + 1] and cut.response_tokens == 1
    assert tokenize(example(), tokenizer, prompt) is None
    rows = tokenize_all([example(0), example(1, "Paris " * 50)], tokenizer, length)
    assert (len(rows.rows), rows.truncated, rows.dropped) == (2, 1, 0)
    long_prompt = Example("geo/0/0/2", "geo", "word " * 300, "", "yes")
    rows = tokenize_all([example(0), long_prompt], tokenizer, length)
    assert (len(rows.rows), rows.truncated, rows.dropped) == (1, 0, 1)


def test_a_length_that_fits_no_row_is_a_user_error(tokenizer):
    with pytest.raises(UserError, match=r"training\.max_length.*geo"):
        tokenize_all([example()], tokenizer, 16)


def test_collate_pads_on_the_right(tokenizer):
    short, long = (
        tokenize(example(), tokenizer, 512),
        tokenize(example(output="Paris, of course"), tokenizer, 512),
    )
    batch = collate([short, long], tokenizer.pad_token_id)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, len(long.input_ids))
    assert batch["attention_mask"].sum(1).tolist() == [len(short.input_ids), len(long.input_ids)]
    assert batch["input_ids"][0, len(short.input_ids) :].eq(tokenizer.pad_token_id).all()
    assert batch["labels"].ne(IGNORED).sum(1).tolist() == [short.response_tokens, long.response_tokens]


def test_held_out_split_is_a_partition_independent_of_order():
    examples = [example(number) for number in range(50)]
    train, held_out = split_held_out(examples, 0.1, 200, seed=3)
    assert len(held_out) == 5 and sorted(train + held_out, key=lambda row: row.id) == sorted(
        examples, key=lambda row: row.id
    )
    _, reversed_held_out = split_held_out(examples[::-1], 0.1, 200, seed=3)
    assert {row.id for row in reversed_held_out} == {row.id for row in held_out}
    assert {row.id for row in split_held_out(examples, 0.1, 200, seed=4)[1]} != {row.id for row in held_out}


@pytest.mark.parametrize(("rows", "max_rows", "expected"), [(1, 200, 0), (2, 200, 1), (50, 3, 3)])
def test_held_out_count(rows, max_rows, expected):
    assert len(split_held_out([example(n) for n in range(rows)], 0.1, max_rows, 0)[1]) == expected


def test_a_share_of_the_rows_keeps_order_and_grows():
    rows = [Example(f"math/{number}", "math", "a", "", "b") for number in range(20)]
    half, most = (draw_share(rows, share, seed=0) for share in (0.5, 0.71))
    assert len(half) == 10 and len(most) == 15 and draw_share(rows, 1.0, seed=0) == rows
    assert [row for row in most if row in half] == half and half != rows[:10]
