"""The tests on every supported Python, and at both ends of the declared ranges of versions.

    pip install nox
    nox                     # all of it; a Python that is not on this machine is skipped, and nox says so
    nox -s tests-3.12       # one
    nox -s lowest -- -x     # words after -- go to pytest

Each session makes an environment of its own under .nox. On a machine without a GPU set
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu, or pip takes the builds of torch for CUDA, which are larger by
some gigabytes.
"""

import nox

EXTRAS = ".[export,fcs,book,test]"
# These compare figures and pages with what the versions in constraints.txt make.
EXACT = ("test_book.py", "test_figure_regression.py", "test_notebook.py", "test_traceability.py")

nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["tests", "lowest", "newest"]


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """All tests, with the measured versions."""
    session.install("-c", "constraints.txt", "-e", EXTRAS)
    session.run("python", "-m", "pytest", "tests", *session.posargs)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The tests of the library with the lowest declared versions, on the lowest Python."""
    session.install("packaging")
    bounds = session.create_tmp() + "/lowest.txt"
    with open(bounds, "w", encoding="utf-8") as file:
        session.run("python", ".ci/lowest.py", stdout=file)
    session.install("-c", bounds, "-e", EXTRAS)
    _test_library(session)


@nox.session(python="3.13")
def newest(session: nox.Session) -> None:
    """The tests of the library with the newest versions in the declared ranges, on the newest Python."""
    session.install("--upgrade", "--upgrade-strategy", "eager", "-e", EXTRAS)
    _test_library(session)


def _test_library(session: nox.Session) -> None:
    ignored = [f"--ignore=tests/{name}" for name in EXACT]
    session.run("python", "-m", "pytest", "tests", *ignored, *session.posargs)
