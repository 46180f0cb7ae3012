#!/usr/bin/env python3
"""Partners made by others, for the black-box tests: partner.py hl7-server | hl7-client PORT COUNT | webhook-server SECRET [CERTIFICATE KEY].

Servers print their port first, then one line for each message that they took."""

import asyncio
import http.server
import os
import ssl
import sys


async def hl7_server():
    import hl7.mllp

    async def serve(reader, writer):
        try:
            while not writer.is_closing():
                message = await reader.readmessage()
                writer.writemessage(message.create_ack())
                await writer.drain()
                print(message.segment("MSH")[10], flush=True)
        except asyncio.IncompleteReadError:
            writer.close()

    async with await hl7.mllp.start_hl7_server(serve, host="127.0.0.1", port=0) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


def hl7_client(port, count):
    import hl7
    import hl7.client

    with hl7.client.MLLPClient("127.0.0.1", port) as client:
        for number in range(count):
            sent = f"MSH|^~\\&|ADT|C|GW|C|2026||ADT^A01|IN{number}|P|2.5\rPID|1||{number % 3}^^^MR||D\u00fcrer\r"
            answer = hl7.parse(client.send_message(sent).decode())
            print(answer.segment("MSA")[1], answer.segment("MSA")[2], flush=True)


def webhook_server(secret, *certificate):
    import standardwebhooks

    class Endpoint(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                standardwebhooks.Webhook(secret).verify(body, {k.lower(): v for k, v in self.headers.items()})
                verdict = "good"
            except standardwebhooks.WebhookVerificationError as error:
                verdict = f"bad: {error}"
            self.send_response(200 if verdict == "good" else 400)
            self.send_header("Content-Length", "0")
            self.end_headers()
            # One write: `print` makes several, between which another thread's line may come.
            os.write(1, f"{self.headers['webhook-id']} {verdict}\n".encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*certificate)
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    print(server.server_address[1], flush=True)
    server.serve_forever()


match sys.argv[1:]:
    case ["hl7-server"]:
        asyncio.run(hl7_server())
    case ["hl7-client", port, count]:
        hl7_client(int(port), int(count))
    case ["webhook-server", secret, *certificate]:
        webhook_server(secret, *certificate)
    case _:
        sys.exit(__doc__)
