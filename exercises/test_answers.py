"""Each exercise's check, on the functions of one file: python -m pytest exercises --answers FILE"""

import pytest
from checks import CHECKS


@pytest.mark.parametrize("name", CHECKS)
def test_exercise(name, answers):
    wrong = what_is_wrong(name, answers)
    if wrong:
        pytest.fail(wrong, pytrace=False)


def what_is_wrong(name, answers):
    """What the check says of an answer; nothing where it is right. Other errors show where they
    were raised."""
    __tracebackhide__ = True  # of an error, the student's own lines matter
    if not hasattr(answers, name):
        return f"{name}: the file has no function of this name"
    try:
        CHECKS[name](getattr(answers, name))
    except NotImplementedError:
        return f"{name}: not done yet"
    except AssertionError as error:
        return str(error)
    return ""
