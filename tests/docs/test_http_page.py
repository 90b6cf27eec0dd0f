"""The reference of requests is what a node says of them."""

from http_page import PAGE, page


def test_the_section_is_up_to_date() -> None:
    assert page() == PAGE.read_text(), "python tests/docs/http_page.py writes it anew"
