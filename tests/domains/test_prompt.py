from selfmoe_ray.domains.prompt import format_prompt


def test_input_section_is_present_only_where_there_is_an_input():
    with_input = format_prompt("Add the numbers.", "3 and 4")
    without = format_prompt("Name a prime.", "  ")
    assert "### Input:\n3 and 4\n\n### Response:\n" in with_input
    assert "### Input:" not in without
    assert "### Instruction:\nName a prime.\n\n### Response:\n" in without


def test_prompt_ends_with_the_response_header():
    for text in (format_prompt("a", ""), format_prompt("a", "b")):
        assert text.endswith("### Response:\n")
        assert text.count("### Response:") == 1


def test_surrounding_whitespace_does_not_change_the_prompt():
    assert format_prompt(" a \n", "\nb") == format_prompt("a", "b")
