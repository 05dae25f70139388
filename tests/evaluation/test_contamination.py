from selfmoe_ray.evaluation.contamination import Overlap, find_overlaps

ITEM = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
ROWS = {
    "a": "Unrelated words about other things, at a length that is enough for some windows of thirteen words.",
    "b": "### Problem\nNATALIA  sold clips to 48 of her friends in April and then she left.",
    "c": ITEM,
}


def test_case_punctuation_and_space_do_not_hide_a_leak():
    # 20 words have 8 windows of 13; row b holds the first.
    assert find_overlaps({"gsm/1": ITEM}, {"a": ROWS["a"], "b": ROWS["b"]}) == [Overlap("gsm/1", 1 / 8, ("b",))]


def test_a_whole_copy_shares_everything():
    assert find_overlaps({"gsm/1": ITEM}, ROWS) == [Overlap("gsm/1", 1.0, ("b", "c"))]


def test_twelve_words_in_common_are_not_thirteen():
    twelve = " ".join(ITEM.split()[:12])
    assert find_overlaps({"gsm/1": ITEM}, {"row": twelve}) == []
    assert [overlap.item for overlap in find_overlaps({"gsm/1": ITEM}, {"row": twelve}, n=12)] == ["gsm/1"]


def test_short_items_have_to_occur_as_a_whole():
    items = {"short": "Who wrote Faust?", "other": "Who wrote Emma?", "empty": "?!"}
    assert find_overlaps(items, {"row": "Question: who wrote Faust? Goethe."}) == [Overlap("short", 1.0, ("row",))]


def test_no_rows_no_leaks():
    assert find_overlaps({"gsm/1": ITEM}, {}) == []
