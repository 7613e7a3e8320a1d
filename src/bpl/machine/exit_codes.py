"""How the program ends, in numbers that a scheduler understands.

| code | meaning |
|---|---|
| 0 | done |
| 1 | a run failed, or a file could not be read or written: the same again will not help |
| 2 | wrong usage: the words, a config, a grid or a file given are not usable |
| 75 | not done yet: the time budget is over, another process is at work, a connection broke off; start it again |
| 130 | ended by Ctrl-C |
| 143 | ended by SIGTERM, as schedulers send it before they kill; start it again |

75 is `EX_TEMPFAIL` of sysexits.h; 130 and 143 are what a shell makes of signals 2 and 15.
"""

DONE = 0
FAILED = 1
WRONG_USAGE = 2
TRY_AGAIN = 75
INTERRUPTED = 130
TERMINATED = 143

MEANING = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 75 not done yet (the time budget is over, another process is at "
    "work, a connection broke off; start it again), 130 ended by Ctrl-C, 143 ended by SIGTERM."
)
