"""The page of tasks is what the tool writes, and has all of them."""

from pathlib import Path

from tests.tools.test_tools import load_tool

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"


def test_the_page_is_what_the_tool_writes(tmp_path: Path) -> None:
    tool = load_tool("list_tasks")
    tool.main(tool.Config(out=tmp_path / "page.md"))
    assert (tmp_path / "page.md").read_text() == PAGE.read_text(), "run python tools/list_tasks.py"
    assert all(f"| `{name}` |" in PAGE.read_text() for name in tool.TASKS)
