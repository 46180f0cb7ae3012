"""A partner that speaks MLLP over TLS by Python's own `ssl`.

tls_peer.py serve CA CERT KEY          prints its port, takes one message of a client with a certificate, answers AA, prints the client's name
tls_peer.py send CA CERT KEY PORT NAME sends one message to a server whose certificate is for NAME, prints what it is answered
"""

import socket
import ssl
import sys

MESSAGE = b"MSH|^~\\&|LAB|H|EHR|C|2026||ORU^R01|P1|P|2.5\rPID|1||42\r"


def read_frame(connection):
    frame = b""
    while not frame.endswith(b"\x1c\r"):
        more = connection.recv(4096)
        if not more:
            sys.exit("closed")
        frame += more
    return frame[1:-2]


def main():
    kind, ca, cert, key = sys.argv[1:5]
    purpose = ssl.PROTOCOL_TLS_SERVER if kind == "serve" else ssl.PROTOCOL_TLS_CLIENT
    context = ssl.SSLContext(purpose)
    context.load_verify_locations(ca)
    context.load_cert_chain(cert, key)
    if kind == "serve":
        context.verify_mode = ssl.CERT_REQUIRED
        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            try:
                connection = context.wrap_socket(connection, server_side=True)
                break
            except ssl.SSLError as error:
                print(error.reason, flush=True)
        control_id = read_frame(connection).split(b"\r")[0].split(b"|")[9]
        answer = b"MSH|^~\\&|LAB|H|EHR|C|2026||ACK|A1|P|2.5\rMSA|AA|" + control_id + b"\r"
        connection.sendall(b"\x0b" + answer + b"\x1c\r")
        print(connection.getpeercert()["subjectAltName"][0][1], flush=True)
        connection.recv(1)
    else:
        port, name = sys.argv[5:7]
        with socket.create_connection(("127.0.0.1", int(port))) as plain:
            connection = context.wrap_socket(plain, server_hostname=name)
            connection.sendall(b"\x0b" + MESSAGE + b"\x1c\r")
            print(read_frame(connection).split(b"\r")[1].decode(), flush=True)


main()
