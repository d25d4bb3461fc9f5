"""What schemathesis sends is bounded in one thing: how long a request waits.

Else those that wait without a limit, for a lock that nobody gives back, are all
that is tried.
"""

import schemathesis

LONGEST_MS = 20


@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and "wait_ms" in body:
        wait = body["wait_ms"]
        if wait is None or (isinstance(wait, (int, float)) and LONGEST_MS < wait < 2**64):
            body["wait_ms"] = LONGEST_MS
    return body
