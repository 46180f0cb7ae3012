#!/usr/bin/env python3
"""A FIX partner that others wrote, QuickFIX C++: fix_partner.py acceptor|initiator PORT DIRECTORY [answer] [status] [CERTIFICATE KEY AUTHORITY].

It is SELL and talks to BUY in FIX 4.4, or has the sessions that FIX_SESSIONS names: `COMPID=BEGINSTRING` or
`COMPID=FIXT.1.1/APPLVER`, with spaces between. Behind it may stand fields of the header that go out with every message of the
session, like `;50=DESK;57=OTHER`; sessions that differ in them alone have qualifiers, which an acceptor cannot have. It keeps its files in DIRECTORY, and with `answer` confirms every order (35=D)
with an ExecutionReport, with `status` every OrderStatusRequest (35=H). It prints a line for each thing that happens: `logon`,
`logout`, and `app` or `admin` with the message, `|` for SOH. Lines on its standard input tell it what to do, in each session:
`send FIRST LAST` sends ExecutionReports E<FIRST> to E<LAST> and says `sent LAST` once it has stored them, `again FIRST LAST` the
same with PossResend and `sent again LAST`, `expect N` makes it
expect MsgSeqNum N next, `reset` sends a Logon with ResetSeqNumFlag, `lose ORDER` lets it not see an order when that comes first,
`fill ORDER STATUS` sends a report on one, `news TEXT` sends a News (35=B) and says `sent TEXT`, `say N` makes it say `said N`,
`quit` ends it."""

import os
import sys

import quickfix as fix

ROLE, PORT, DIRECTORY, *MORE = sys.argv[1:]
ANSWER = "answer" in MORE
STATUS = "status" in MORE
TLS = [word for word in MORE if word not in ("answer", "status")]
SESSIONS = os.environ.get("FIX_SESSIONS", "BUY=FIX.4.4").split()


def say(*words):
    # One write: other threads say things too.
    os.write(1, (" ".join(words) + "\n").encode("latin-1"))


def shown(message):
    return message.toString().replace("\x01", "|")


def tag(message, number):
    return message.getField(number) if message.isSetField(number) else ""


class Partner(fix.Application):
    def onCreate(self, session):
        self.sessions.append(session)

    def onLogon(self, session):
        say("logon")

    def onLogout(self, session):
        say("logout")

    def toAdmin(self, message, session):
        for number, value in self.fields.get(session.getSessionQualifier(), []):
            message.getHeader().setField(number, value)

    def fromAdmin(self, message, session):
        say("admin", shown(message))

    def toApp(self, message, session):
        self.toAdmin(message, session)

    def fromApp(self, message, session):
        say("app", shown(message))
        header = message.getHeader()
        kind, order = header.getField(35), tag(message, 11)
        if kind == "D" and order in self.lost:
            self.lost.discard(order)
        elif kind == "D":
            self.seen.add(order)
        if STATUS and kind == "H":
            report = self.report("S" + order, order)
            report.setField(150, "I")
            if order not in self.seen:
                report.setField(39, "8")
                report.setField(103, "5")
            fix.Session.sendToTarget(report, session)
        if ANSWER and header.getField(35) == "D":
            possibly_known = header.isSetField(43) and header.getField(43) == "Y"
            order = (session.toString(), tag(message, 11))
            if not possibly_known or order not in self.answered:
                self.answered.add(order)
                fix.Session.sendToTarget(self.report("X" + tag(message, 11), tag(message, 11)), session)

    sessions = []
    # Of the header, by the session's qualifier.
    fields = {}
    answered = set()
    seen = set()
    lost = set()
    fills = 0

    def report(self, execution, order):
        message = fix.Message()
        message.getHeader().setField(35, "8")
        for number, value in [(37, order or execution), (17, execution), (150, "0"), (39, "0"), (55, "X")]:
            message.setField(number, value)
        message.setField(54, "1")
        if order:
            message.setField(11, order)
        return message


def settings():
    lines = [
        "[DEFAULT]",
        f"ConnectionType={ROLE}",
        f"FileStorePath={DIRECTORY}",
        f"FileLogPath={DIRECTORY}",
        "StartTime=00:00:00",
        "EndTime=00:00:00",
        "NonStopSession=Y",
        "UseDataDictionary=N",
        "HeartBtInt=10",
        "ReconnectInterval=1",
        "SocketNodelay=Y",
        "PersistMessages=Y",
        f"SocketAcceptPort={PORT}",
        "SocketReuseAddress=Y",
        "SocketConnectHost=127.0.0.1",
        f"SocketConnectPort={PORT}",
    ]
    if TLS:
        certificate, key, authority = TLS
        kind = "Server" if ROLE == "acceptor" else "Client"
        lines += [
            f"{kind}CertificateFile={certificate}",
            f"{kind}CertificateKeyFile={key}",
            f"CertificationAuthoritiesFile={authority}",
            "CertificateVerifyLevel=1",
        ]
    for index, session in enumerate(SESSIONS):
        session, *fields = session.split(";")
        target, _, version = session.partition("=")
        begin_string, _, application = version.partition("/")
        lines += ["[SESSION]", f"BeginString={begin_string}", "SenderCompID=SELL", f"TargetCompID={target}"]
        if application:
            lines.append(f"DefaultApplVerID={application}")
        qualifier = str(index) if fields and ROLE == "initiator" else ""
        if qualifier:
            lines.append(f"SessionQualifier={qualifier}")
        if fields:
            Partner.fields[qualifier] = [(int(tag), value) for tag, value in (field.split("=") for field in fields)]
    file = os.path.join(DIRECTORY, "settings")
    with open(file, "w") as out:
        out.write("\n".join(lines) + "\n")
    return fix.SessionSettings(file)


def main():
    partner = Partner()
    config = settings()
    store, log = fix.FileStoreFactory(config), fix.FileLogFactory(config)
    prefix = "SSLSocket" if TLS else "Socket"
    kind = getattr(fix, prefix + ROLE.capitalize())
    engine = kind(partner, store, config, log)
    engine.start()
    say("ready")
    for line in sys.stdin:
        match line.split():
            case ["send", first, last]:
                for number in range(int(first), int(last) + 1):
                    for session in partner.sessions:
                        fix.Session.sendToTarget(partner.report(f"E{number}", ""), session)
                say("sent", last)
            case ["again", first, last]:
                for number in range(int(first), int(last) + 1):
                    for session in partner.sessions:
                        report = partner.report(f"E{number}", "")
                        report.getHeader().setField(97, "Y")
                        fix.Session.sendToTarget(report, session)
                say("sent", "again", last)
            case ["expect", number]:
                for session in partner.sessions:
                    fix.Session.lookupSession(session).setNextTargetMsgSeqNum(int(number))
                say("expecting", number)
            case ["reset"]:
                for session in partner.sessions:
                    logon = fix.Message()
                    logon.getHeader().setField(35, "A")
                    for number, value in [(98, "0"), (108, "10"), (141, "Y")]:
                        logon.setField(number, value)
                    fix.Session.sendToTarget(logon, session)
            case ["lose", order]:
                partner.lost.add(order)
                say("losing", order)
            case ["say", number]:
                say("said", number)
            case ["fill", order, status]:
                for session in partner.sessions:
                    partner.fills += 1
                    report = partner.report(f"F{partner.fills}", order)
                    report.setField(39, status)
                    fix.Session.sendToTarget(report, session)
            case ["news", text]:
                for session in partner.sessions:
                    news = fix.Message()
                    news.getHeader().setField(35, "B")
                    news.setField(148, text)
                    fix.Session.sendToTarget(news, session)
                say("sent", text)
            case ["quit"]:
                break
    engine.stop()


main()
