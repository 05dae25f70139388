from __future__ import annotations

from pathlib import Path

from selfmoe_ray.reporting.closing import closing
from selfmoe_ray.run.run_dir import RunDir


def test_closing_shows_an_answer_its_experts_and_the_reports_place(tmp_path: Path) -> None:
    run_dir = RunDir(str(tmp_path), "demo")

    def answer(text: str, finished: bool, experts: list[int]) -> dict[str, object]:
        tokens = [{"text": "x", "gate": [], "expert": expert} for expert in experts]
        task = {"domain": "math", "row": "r", "instruction": "Add.", "input": "1\n2"}
        return {**task, "answer": text, "finished": finished, "tokens": tokens}

    answers = [answer("and so on", False, [0] * 9), answer("It is\n3.", True, [1, 1, 1, 0])]
    traced = {"experts": ["math", "coding"], "answers": answers, "passages": []}
    run_dir.storage.write_json("measure/answer.json", traced)
    text = closing(run_dir)
    assert "MiXSE was asked (math):\n    Add.\n    1\n    2\nIt answered:\n    It is\n    3.\n" in text
    assert "Top expert of its tokens: coding 75%, math 25%" in text
    assert text.endswith(f"The report is at {tmp_path}/demo/report/index.html")
