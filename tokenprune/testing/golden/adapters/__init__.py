"""One module per method's folder, each with `check(case) -> list[str]`."""
