"""Parts of a page are replaced, and nothing else is."""

from __future__ import annotations

import pytest

from benchmarks import marks

PAGE = """# A page

Prose with a figure, 3.

<!-- made: first -->

| a |
|---|
| 1 |

<!-- end -->
More prose.
<!-- made: the second -->
old
<!-- end -->
"""


def test_only_what_is_between_marks_changes() -> None:
    found = marks.replaced(PAGE, {"first": "\n| a |\n|---|\n| 2 |\n", "unknown": "nowhere"})
    assert found == PAGE.replace("| 1 |", "| 2 |")
    assert marks.names(PAGE) == ["first", "the second"]
    both = marks.replaced(PAGE, {"first": "| 5 |", "the second": "new"})
    assert "old" not in both
    assert "\n<!-- made: the second -->\n\nnew\n\n<!-- end -->\n" in both
    assert both.startswith(PAGE.split("<!--")[0])
    assert marks.replaced(both, {"first": "| 5 |", "the second": "new"}) == both


@pytest.mark.parametrize(
    "page", ["", "no mark", "\n\n", PAGE, PAGE.rstrip("\n"), "<!-- a note -->"]
)
def test_a_page_of_which_nothing_is_made_stays_byte_for_byte(page: str) -> None:
    assert marks.replaced(page, {}) == marks.replaced(page, {"other": "x"}) == page


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("<!-- made: a -->\n1\n", "`a` has no end"),
        ("<!-- made: a -->\n<!-- made: b -->\n<!-- end -->", "line 2: `a` has no end before"),
        ("x\n<!-- end -->", "line 2: an end without a mark"),
        ("<!-- made: a -->\n<!-- end -->\n<!-- made: a -->\n<!-- end -->", "one name"),
        ("<!-- made:a -->\n<!-- end -->", "line 1: neither"),
        ("<!-- made: a -->\n<!--end-->", "line 2: neither"),
        ("<!-- Made: a -->\n", "line 1: neither"),
        ("<!-- made: a -->\n<!-- end --> \n", "line 2: neither"),
        ("text <!-- made: a -->\n", "line 1: neither"),
    ],
)
def test_wrong_marks_are_errors(page: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        marks.replaced(page, {"a": "1"})
