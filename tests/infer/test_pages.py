"""Pages are found by what is in them, are never given to two, and go in the order in which they were last wanted."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lorikeet.infer.pages import Pages, names
from lorikeet.models.kv_cache import PAGE


def text(*pages: int) -> list[int]:
    return [page for page in pages for _ in range(PAGE)]


def test_a_name_says_all_tokens_up_to_its_end_and_who_computes_them() -> None:
    one = names(b"", text(1, 2, 3))
    assert len(one) == 3 and names(b"", [*text(1, 2), 9]) == one[:2]
    assert names(b"", text(4, 2, 3))[1] != one[1] and names(b"", text(1, 5))[0] == one[0]
    assert not set(names(b"adapter", text(1, 2, 3))) & set(one)
    assert names(b"", [1] * (PAGE - 1)) == []


def test_a_text_that_is_over_leaves_its_full_pages_for_those_that_begin_alike() -> None:
    pages, named = Pages(4), names(b"", text(1, 2))
    mine = [pages.take(), pages.take(), pages.take()]
    assert [pages.name(page, name) for page, name in zip(mine, named)] == mine[:2]
    assert pages.find(named) == mine[:2] and pages.unused(mine[:2]) == 0
    pages.leave(mine)
    assert pages.available == 4 and pages.unused(mine[:2]) == 2
    pages.share(mine[0])
    pages.share(mine[0])
    assert pages.available == 3 and pages.unused(mine[:2]) == 1
    pages.leave([mine[0]])
    assert pages.available == 3, "one text still has it"
    assert pages.find(names(b"", text(1, 9))) == mine[:1]


def test_those_that_nobody_wanted_for_longest_go_first_and_ends_before_beginnings() -> None:
    pages, first, second = Pages(4), names(b"", text(1, 2)), names(b"", text(3, 4))
    for named in (first, second):
        mine = [pages.take(), pages.take()]
        for page, name in zip(mine, named):
            pages.name(page, name)
        pages.leave(mine)
    for page in pages.find(first):  # wanted again: now the second text is the older one
        pages.share(page)
    pages.leave(pages.find(first))
    pages.take()
    assert (len(pages.find(first)), len(pages.find(second))) == (2, 1)
    pages.take()
    assert (len(pages.find(first)), len(pages.find(second))) == (2, 0)
    pages.take()
    assert len(pages.find(first)) == 1
    assert pages.available == 1


def test_two_texts_that_read_the_same_at_once_end_up_with_one_page() -> None:
    pages, (name,) = Pages(2), names(b"", text(1))
    left, right = pages.take(), pages.take()
    assert pages.name(left, name) == left and pages.name(right, name) == left
    assert pages.available == 1
    pages.leave([left])
    assert pages.available == 1
    pages.leave([left])
    assert pages.available == 2


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 1), min_size=1, max_size=4)), max_size=30))
@settings(max_examples=60, deadline=None)
def test_no_page_is_lost_or_given_twice(events: list[tuple[bool, list[int]]]) -> None:
    """Texts come (true) and go; full pages are named at once."""
    pages, live = Pages(8), list[tuple[list[int], list[int]]]()
    for comes, content in events:
        if not comes or len(content) > pages.available:
            if live:
                pages.leave(live.pop(0)[0])
            continue
        named = names(b"", text(*content))
        found = pages.find(named)
        for page in found:
            pages.share(page)
        mine = [*found, *(pages.take() for _ in named[len(found) :])]
        live.append(([pages.name(page, name) for page, name in zip(mine, named)], content))
        held = {page: tuple(content[: i + 1]) for pages_of, content in live for i, page in enumerate(pages_of)}
        for pages_of, content in live:  # each page has the content of everyone who has it
            assert all(held[page] == tuple(content[: i + 1]) for i, page in enumerate(pages_of))
        assert pages.available == 8 - len(held)
    for pages_of, _ in live:
        pages.leave(pages_of)
    assert pages.available == 8
