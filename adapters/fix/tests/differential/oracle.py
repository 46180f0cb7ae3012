"""What other people's FIX libraries say. One question a line, one answer a line.

    dictionary VERSION      the path of QuickFIX's dictionary, as PyPI's fixcore-engine carries it
    validate VERSION        base64 of a message -> `ok`, or the name of QuickFIX's exception and the field
    garbled                 base64 -> `ok`, or `garbled` if QuickFIX takes that for no message
    read                    base64 of a message -> its fields as simplefix reads them
    write                   tag=base64 ... -> base64 of the message that simplefix makes of them
"""

import base64
import importlib.util
import os
import sys


def dictionary(version):
    package = importlib.util.find_spec("fixcore").submodule_search_locations[0]
    return os.path.join(package, "specs", version + ".xml")


def validate(version):
    import quickfix

    application = quickfix.DataDictionary(dictionary(version))
    session = quickfix.DataDictionary(dictionary("FIXT11")) if version.startswith("FIX50") else application

    def answer(line):
        # Its strings are text, so every byte becomes the character of its number, and back.
        text = base64.b64decode(line).decode("latin-1")
        of_session = text.split("\x01")[2] in {f"35={kind}" for kind in "012345An"}
        rules = session if of_session else application
        try:
            if session is application:
                application.validate(quickfix.Message(text, application, True))
            else:
                quickfix.DataDictionary.validate(quickfix.Message(text, session, rules, True), session, rules)
        except Exception as exception:
            if type(exception).__module__ != "quickfix":
                raise
            return f"{type(exception).__name__} {getattr(exception, 'field', 0)}"
        return "ok"

    return answer


def garbled(_):
    import quickfix

    def answer(line):
        try:
            quickfix.Message(base64.b64decode(line).decode("latin-1"), True)
        except quickfix.InvalidMessage:
            return "garbled"
        return "ok"

    return answer


def read(_):
    import simplefix

    def answer(line):
        parser = simplefix.FixParser()
        parser.append_buffer(base64.b64decode(line))
        read = list(iter(parser.get_message, None))
        if len(read) != 1:
            return f"{len(read)} messages"
        return " ".join(f"{int(tag)}={base64.b64encode(value).decode()}" for tag, value in read[0])

    return answer


def write(_):
    import simplefix

    def answer(line):
        message = simplefix.FixMessage()
        for field in line.split():
            tag, _, value = field.partition("=")
            message.append_pair(int(tag), base64.b64decode(value), header=int(tag) in (8, 9, 35))
        return base64.b64encode(message.encode()).decode()

    return answer


def main():
    if sys.argv[1] == "dictionary":
        print(dictionary(sys.argv[2]))
        return
    answer = {"validate": validate, "garbled": garbled, "read": read, "write": write}[sys.argv[1]](sys.argv[-1])
    for line in sys.stdin:
        print(answer(line.rstrip("\n")))


main()
