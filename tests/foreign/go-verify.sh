#!/bin/sh
# Verifies an exported audit log with Go's transparency log library: go-verify.sh DIR VKEYFILE [PROOF...]
# Installs what it needs with apt-get, unless FOREIGN_INSTALL=no.
# Exit code 0 all is well, 1 not, 2 usage, 77 SKIPPED because Go or its library cannot be had.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
library=/usr/share/gocode/src/golang.org/x/mod/sumdb/tlog

available() {
    command -v go >/dev/null 2>&1 && [ -d "$library" ] && [ -d /usr/share/gocode/src/golang.org/x/crypto ]
}

if ! available && [ "${FOREIGN_INSTALL:-yes}" != no ]; then
    apt-get install -y --no-install-recommends golang-go golang-golang-x-mod-dev golang-golang-x-crypto-dev \
        >/dev/null 2>&1 || true
fi
if ! available; then
    echo "SKIPPED: needs golang-go, golang-golang-x-mod-dev and golang-golang-x-crypto-dev"
    exit 77
fi

build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
GO111MODULE=off GOPATH=/usr/share/gocode GOFLAGS='' GOCACHE=${GOCACHE:-${TMPDIR:-/tmp}/gatepost-go-cache} \
    go build -o "$build/verify" "$here/verify.go"
"$build/verify" "$@"
