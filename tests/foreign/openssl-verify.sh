#!/bin/sh
# What an auditor can check by hand, with nothing but OpenSSL and coreutils: openssl-verify.sh DIR VKEYFILE
# The key's id, the checkpoint's signature, and that the first entries hash to the first tile.
# Exit code 0 all is well, 1 not, 2 usage, 77 SKIPPED because OpenSSL cannot check Ed25519 here.
set -eu

# Entries of the first bundle that are hashed; each costs a few processes.
ENTRIES_MAX=16

[ $# -eq 2 ] || { echo "usage: openssl-verify.sh DIR VKEYFILE" >&2; exit 2; }
dir=$1
vkey=$(cat "$2")
if ! openssl version 2>/dev/null | grep -q '^OpenSSL 3'; then
    echo "SKIPPED: needs OpenSSL 3"
    exit 77
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

failed() { echo "FAILED: $1"; exit 1; }
hex() { od -An -v -tx1 | tr -d ' \n'; }

# The vkey is name+id+base64(01 || public key); the id is the beginning of SHA-256(name || newline || 01 || key).
name=${vkey%%+*}
id=$(printf '%s' "$vkey" | cut -d+ -f2)
printf '%s' "$vkey" | cut -d+ -f3- | openssl base64 -d -A > "$work/typed-key"
computed=$( { printf '%s\n' "$name"; cat "$work/typed-key"; } | openssl dgst -sha256 -binary | head -c 4 | hex)
[ "$computed" = "$id" ] || failed "the key has id $computed, its text says $id"

# DER of an Ed25519 public key: a fixed prefix and the 32 bytes.
{ printf '\060\052\060\005\006\003\053\145\160\003\041\000'; tail -c +2 "$work/typed-key"; } > "$work/key.der"
openssl pkey -pubin -inform DER -in "$work/key.der" -out "$work/key.pem" || failed "the key is not Ed25519"

# The signed text is everything before the blank line, the signature line is "— name base64(id || signature)".
sed '/^$/,$d' "$dir/checkpoint" > "$work/text"
[ "$(head -n 1 "$work/text")" = "$name" ] || failed "the checkpoint is of another log"
awk -v name="$name" 'blank && $2 == name { print $3 } /^$/ { blank = 1 }' "$dir/checkpoint" |
    head -n 1 | openssl base64 -d -A > "$work/typed-signature"
[ "$(head -c 4 "$work/typed-signature" | hex)" = "$id" ] || failed "the checkpoint is signed by another key"
tail -c +5 "$work/typed-signature" > "$work/signature"
openssl pkeyutl -verify -pubin -inkey "$work/key.pem" -rawin -in "$work/text" -sigfile "$work/signature" \
    > "$work/answer" 2>&1 || failed "the signature is not one over the checkpoint"

# A leaf hash is SHA-256(00 || entry); entries stand in the bundle after their length in two bytes.
size=$(sed -n 2p "$work/text")
bundle="$dir/tile/entries/000" tile="$dir/tile/0/000"
if [ "$size" -lt 256 ]; then
    bundle="$bundle.p/$size" tile="$tile.p/$size"
fi
entry=0 offset=0
while [ "$entry" -lt "$size" ] && [ "$entry" -lt "$ENTRIES_MAX" ]; do
    # shellcheck disable=SC2046  # two numbers are wanted
    set -- $(tail -c +$((offset + 1)) "$bundle" | head -c 2 | od -An -tu1)
    length=$(($1 * 256 + $2))
    computed=$( { printf '\000'; tail -c +$((offset + 3)) "$bundle" | head -c "$length"; } |
        openssl dgst -sha256 -binary | hex)
    expected=$(tail -c +$((entry * 32 + 1)) "$tile" | head -c 32 | hex)
    [ "$computed" = "$expected" ] || failed "entry $entry does not hash to what $tile says"
    offset=$((offset + 2 + length))
    entry=$((entry + 1))
done
echo "OK (OpenSSL): $name, $size entries, signature good, first $entry entries hash to their tile"
