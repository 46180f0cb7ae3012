"""A partner that lives in a network namespace of its own, so that it can vanish without a word. Python's standard library only.

    vanishing.py mllp ADDRESS PORT       listens, acknowledges every message, prints the control id of each
    vanishing.py http ADDRESS PORT       listens, takes every request, prints the body of each
    vanishing.py half ADDRESS PORT N     connects N times, sends half a message on each, prints "ready", and waits
"""

import http.server
import os
import socket
import sys
import threading
import time

mode, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])


def say(line):
    """One write: `print` makes two, between which another thread's line may come."""
    os.write(1, (line + "\n").encode())


def acknowledge(stream):
    waiting = b""
    while True:
        got = stream.recv(65536)
        if not got:
            return
        waiting += got
        while b"\x1c\r" in waiting:
            frame, waiting = waiting.split(b"\x1c\r", 1)
            name = frame.split(b"|")[9].decode()
            say(name)
            answer = f"MSH|^~\\&|B||A||2026||ACK|9|P|2.5\rMSA|AA|{name}\r"
            stream.sendall(b"\x0b" + answer.encode() + b"\x1c\r")


class Taker(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        say(self.rfile.read(int(self.headers["content-length"])).decode())
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


if mode == "mllp":
    listener = socket.create_server((address, port))
    say("ready")
    while True:
        threading.Thread(target=acknowledge, args=(listener.accept()[0],), daemon=True).start()
elif mode == "http":
    server = http.server.ThreadingHTTPServer((address, port), Taker)
    say("ready")
    server.serve_forever()
else:
    streams = [socket.create_connection((address, port)) for _ in range(int(sys.argv[4]))]
    for stream in streams:
        stream.sendall(b"\x0bMSH|^~\\&|B||A||2026||ADT^A01|half|P|2.5\rPID|1||")
    say("ready")
    time.sleep(600)
