"""Scores as text, in tables and CSV files."""


def percent(value: float, digits: int = 1) -> str:
    """A fraction in percent; "-" for NaN.

    >>> percent(0.7904), percent(0.7904, 2), percent(float("nan"))
    ('79.0', '79.04', '-')
    """
    return "-" if value != value else f"{100 * value:.{digits}f}"


def cell(value: float) -> str:
    """6 significant digits; "" for NaN.

    >>> cell(2 / 3), cell(1.0), cell(float("nan"))
    ('0.666667', '1', '')
    """
    return "" if value != value else f"{value:.6g}"
