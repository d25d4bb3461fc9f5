"""Whether the first event of the stream is as the description of the API says.

    described_events.py URL TOKEN
"""

import json
import sys
import urllib.request

import jsonschema_rs

url, token = sys.argv[1:]


def get(path):
    head = {"Authorization": f"Bearer {token}"}
    return urllib.request.urlopen(urllib.request.Request(url + path, headers=head), timeout=60)


document = json.load(get("/v1/openapi.json"))
content = document["paths"]["/v1/events"]["get"]["responses"]["200"]["content"]
schema = {**content["text/event-stream"]["x-event-data"], "components": document["components"]}
stream = get("/v1/events")
assert stream.headers["Content-Type"] == "text/event-stream"
name, data = stream.readline(), stream.readline()
assert name == b"event: locks\n", name
event = json.loads(data.removeprefix(b"data: "))
jsonschema_rs.Draft202012Validator(schema).validate(event)
assert len(event["locks"]) == 2 and event["locks"][0]["lease"], event
del event["held"]
assert not jsonschema_rs.Draft202012Validator(schema).is_valid(event)
print("as described")
