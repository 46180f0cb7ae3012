#!/usr/bin/env python3
"""A whole Gatepost adapter in Python's standard library: its partner is the file that the setting `file` names."""

import http.client
import json
import os
import socket
import sys


class Gatepost(http.client.HTTPConnection):
    """HTTP over the Unix socket that the gateway gives its adapters."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ["GATEPOST_SOCKET"])

    def call(self, path, **body):
        self.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self.getresponse()
        document = json.loads(answer.read())
        if answer.status != 200:
            sys.exit(f"{path}: {document['code']}: {document['detail']}")
        return document


def main():
    gatepost = Gatepost("gatepost")
    session = gatepost.call("/v1/session", version="1")
    epoch, queue, path = session["epoch"], session["name"], session["settings"]["file"]
    while True:
        leased = gatepost.call(f"/v1/queues/{queue}/lease", max=10, wait_ms=20000, epoch=epoch)
        results = []
        for delivery in leased["deliveries"]:
            result = {"delivery": delivery["id"], "token": delivery["token"]}
            try:
                with open(path, "a") as partner:  # here an adapter of yours speaks its partner's protocol
                    partner.write(json.dumps([delivery["id"], delivery["event"].get("data")]) + "\n")
                result |= {"outcome": "delivered", "evidence": {"level": "sent"}}
            except OSError as error:  # the partner is out of reach: nobody's attempt is charged
                result |= {"outcome": "retry", "scope": "destination", "reason": str(error)}
            results.append(result)
        if results:
            gatepost.call("/v1/settle", results=results, epoch=epoch)


if __name__ == "__main__" and not sys.argv[1:]:
    main()
sys.exit(64)  # asked for --manifest or --check: this adapter has none
