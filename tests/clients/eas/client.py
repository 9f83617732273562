"""A real client: the eas_prediction SDK, in an environment of its own (requirements.txt beside this file).

``python tests/clients/eas/client.py ENDPOINT SERVICE [--token T] [--custom-url URL] [--direct] [--reconnect]`` reads a
plan on standard input and prints ``{"sent": N, "ok": N, "errors": [...]}``. ``--direct`` asks ENDPOINT for the
instances, and sends to them. ``--reconnect`` makes a client, and so a connection, for each call. ``--lines``: each line
is a plan, and is answered by a line, until the input ends.
``--dump`` prints the serialized request of each call as a line of hexadecimal digits instead of sending it, and
``--parse`` reads such lines, parses each with the SDK's own message and prints it again.
"""

import argparse
import json
import sys
from pathlib import Path

from eas_prediction import PredictClient, TFRequest
from eas_prediction.exception import PredictException

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plan import feeds

_TYPES = {"string": TFRequest.DT_STRING, "float": TFRequest.DT_FLOAT, "int64": TFRequest.DT_INT64}
#: Milliseconds; a cold call takes one or two thousand.
_TIMEOUT = 120000


def request(call):
    """One TFRequest."""
    made = TFRequest(call["signature"] or "serving_default")
    for feed in feeds(call):
        values = [value.encode() for value in feed.values] if feed.kind == "string" else feed.values
        made.add_feed(feed.alias, feed.shape, _TYPES[feed.kind], values)
    for output in call["outputs"]:
        made.add_fetch(output)
    return made


def client(options):
    """A client as the SDK's documentation sets it up."""
    made = PredictClient(options.endpoint, options.service, custom_url=options.custom_url)
    if options.direct:
        made.set_endpoint_type("DIRECT")
    made.set_token(options.token)
    made.set_timeout(_TIMEOUT)
    made.set_retry_count(1)
    made.init()
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoint")
    parser.add_argument("service")
    parser.add_argument("--token", default="")
    parser.add_argument("--custom-url", default="")
    parser.add_argument("--direct", action="store_true")
    parser.add_argument("--reconnect", action="store_true")
    parser.add_argument("--lines", action="store_true")
    parser.add_argument("--dump", action="store_true")
    parser.add_argument("--parse", action="store_true")
    options = parser.parse_args()
    if options.parse:
        for line in sys.stdin:
            parsed = TFRequest("x")
            parsed.request_data.ParseFromString(bytes.fromhex(line))
            print(parsed.to_string().hex())
        return
    if options.lines:
        connected = client(options)
        for line in sys.stdin:
            print(json.dumps(follow(json.loads(line), options, connected)), flush=True)
        return
    plan = json.load(sys.stdin)
    if options.dump:
        for call in plan:
            print(request(call).to_string().hex())
        return
    print(json.dumps(follow(plan, options)))


def follow(plan, options, connected=None):
    """Make the calls; what came of them."""
    ok, errors = 0, []
    for call in plan:
        if connected is None or options.reconnect:
            connected = client(options)
        try:
            connected.predict(request(call))
            ok += 1
        except PredictException as error:
            errors.append(str(error))
    return {"sent": len(plan), "ok": ok, "errors": errors}


if __name__ == "__main__":
    main()
