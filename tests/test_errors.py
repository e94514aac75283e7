"""How an exception is told in one line."""

from divsel_ray.errors import first_line, last_line, one_line, words_of

RAY = ValueError("\x1b[36mray::embed()\x1b[39m\n  File 'embed.py', line 3\n ValueError: no such row \n")


def test_an_exception_is_told_by_its_kind_and_its_words_on_one_line():
    assert one_line(OSError("no route\n   to host")) == "OSError: no route to host"


def test_an_exception_that_says_nothing_is_told_by_its_kind():
    assert (one_line(MemoryError()), first_line(MemoryError()), last_line(MemoryError())) == ("MemoryError",) * 3


def test_the_words_of_an_exception_are_one_line_of_bounded_length():
    assert words_of(ValueError("a  b\n\tc")) == "a b c"
    assert (len(words_of(ValueError("x" * 400))), len(words_of(ValueError("x" * 400), 350))) == (300, 350)


def test_the_first_line_is_what_a_library_says_before_its_details():
    assert first_line(OSError("\nnot found: a.parquet\nDetail: Python exception: ...")) == "not found: a.parquet"


def test_the_last_line_is_the_error_that_ray_wrapped():
    assert last_line(RAY) == "ValueError: no such row"
