"""What the hostile inputs came to, printed at the end of a session that had any."""

from fuzzing import TALLIES


def pytest_terminal_summary(terminalreporter) -> None:
    if TALLIES:
        terminalreporter.section("hostile inputs")
        for tally in TALLIES:
            terminalreporter.write_line(str(tally))
