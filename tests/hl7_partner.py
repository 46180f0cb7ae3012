#!/usr/bin/env python3
"""HL7 partners made by others: hl7_partner.py closing-server | digests.

Print their port first, then a line for each message: its control id, or the SHA-256 of its body."""

import asyncio
import hashlib
import sys


def closing_server():
    """hl7apy's server, which closes the connection behind each answer."""
    from hl7apy.mllp import AbstractHandler, MLLPServer

    class Handler(AbstractHandler):
        def reply(self):
            control_id = self.incoming_message.split("|")[9]
            print(control_id, flush=True)
            return f"\x0bMSH|^~\\&|LAB|H|EHR|C|2026||ACK|9|P|2.5\rMSA|AA|{control_id}\r\x1c\r"

    server = MLLPServer("127.0.0.1", 0, {"ORM^O01": (Handler,)})
    print(server.server_address[1], flush=True)
    server.serve_forever()


async def digests():
    """The decoder of the package hl7."""
    from hl7.mllp.streams import MLLPStreamReader

    async def serve(reader, writer):
        try:
            while True:
                print(hashlib.sha256(await reader.readblock()).hexdigest(), flush=True)
        except asyncio.IncompleteReadError:
            writer.close()

    def protocol():
        reader = MLLPStreamReader(loop=loop)
        return asyncio.StreamReaderProtocol(reader, serve, loop=loop)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


match sys.argv[1:]:
    case ["closing-server"]:
        closing_server()
    case ["digests"]:
        asyncio.run(digests())
    case _:
        sys.exit(__doc__)
