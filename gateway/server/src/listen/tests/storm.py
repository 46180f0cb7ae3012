"""Processes that connect and are gone, while others get their numbers. Driven by lines on standard input:

  batch N   N processes connect and end; each one's number is then given to a process that runs the rightful program.
            N more connect and become the rightful program, which lives on. Answers "ready WRONGFUL REUSED RIGHTFUL".
  read      Reads what every connection was answered; ends the processes. Answers "wrongful {status: n} rightful {status: n}".
"""

import collections, json, os, signal, socket, sys

path, rightful = sys.argv[1], sys.argv[2]
LAST_PID = "/proc/sys/kernel/ns_last_pid"


def give_next(pid):
    """Lets the kernel give out this number next, unless somebody else starts a process in between."""
    with open(LAST_PID, "w") as file:
        file.write(str(pid - 1))


def become_rightful():
    os.execv(rightful, [rightful, "3600"])


def connect(then):
    """The child connects, so that the kernel takes its credentials; the parent keeps the connection."""
    stream = socket.socket(socket.AF_UNIX)
    pid = os.fork()
    if pid == 0:
        try:
            stream.connect(path)
            then()
        finally:
            os._exit(1)
    return pid, stream


def status(stream):
    stream.settimeout(20)
    answer = b""
    try:
        stream.sendall(b"GET /who HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    except OSError:
        pass  # Refused and closed already; the answer is there.
    try:
        while part := stream.recv(4096):
            answer += part
    except ConnectionResetError:
        pass
    stream.close()
    return answer.split(b" ")[1].decode() if answer.startswith(b"HTTP/1.1 ") else "none"


wrongful, good, living = [], [], []
for line in sys.stdin:
    word, *count = line.split()
    if word == "batch":
        pids = []
        for _ in range(int(count[0])):
            pid, stream = connect(lambda: os._exit(0))
            assert os.waitpid(pid, 0)[1] == 0, "it could not connect"
            pids.append(pid)
            wrongful.append(stream)
        reused = 0
        for wanted in pids:
            give_next(wanted)
            pid = os.fork()
            if pid == 0:
                become_rightful()
            living.append(pid)
            reused += pid in pids
        for _ in range(int(count[0])):
            pid, stream = connect(become_rightful)
            living.append(pid)
            good.append(stream)
        for pid in living:
            while os.readlink(f"/proc/{pid}/exe") != rightful:
                pass  # It has not executed it yet.
        print("ready", len(wrongful), reused, len(good), flush=True)
    elif word == "read":
        answers = [collections.Counter(map(status, streams)) for streams in (wrongful, good)]
        for pid in living:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        wrongful, good, living = [], [], []
        print(json.dumps(answers), flush=True)
