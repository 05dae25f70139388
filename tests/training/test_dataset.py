import pytest
from transformers import AutoTokenizer

from selfmoe_ray.domains.prompt import format_prompt
from selfmoe_ray.errors import UserError
from selfmoe_ray.run.records import Example
from selfmoe_ray.training.dataset import IGNORED, collate, tokenize, tokenize_all


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
