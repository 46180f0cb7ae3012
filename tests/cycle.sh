#!/bin/sh
# The whole cycle with nothing but curl: cycle.sh APP_SOCKET ADMIN_SOCKET ADAPTER_SOCKET
# The app sends `orders.new`, which goes to the external adapter `desk`; what `desk` emits comes into the app's inbox `answers`.
set -eu
app=$1 admin=$2 adapter=$3

api() { # SOCKET PATH [BODY [MEDIA_TYPE]]
    curl --silent --show-error --fail-with-body --unix-socket "$1" "http://gatepost$2" \
        ${3:+--header "Content-Type: ${4:-application/json}" --data-binary "$3"}
    echo
}
first() { # MEMBER: its first string or number in the JSON on stdin
    grep -o "\"$1\":\"\{0,1\}[^\",}]*" | head -n 1 | sed 's/^[^:]*:"\{0,1\}//'
}

echo "== accept: the app hands in a message; the answer leaves after it is on disk"
event='{"specversion":"1.0","id":"1","source":"/shop","type":"orders.new","partitionkey":"customer-7","data":{"item":"cup"}}'
accepted=$(api "$app" /v1/messages "$event" application/cloudevents+json)
echo "$accepted"
message=$(echo "$accepted" | first id)

echo "== session: the adapter opens one and gets its durable state"
session=$(api "$adapter" /v1/session '{}')
echo "$session"
epoch=$(echo "$session" | first epoch)

echo "== lease: the right to try one delivery"
leased=$(api "$adapter" /v1/queues/desk/lease "{\"max\":1,\"epoch\":$epoch}")
echo "$leased"
delivery=$(echo "$leased" | first id)
token=$(echo "$leased" | first token)

echo "== settle: outcome, an emitted answer and new state, in one transaction"
answer='{"specversion":"1.0","id":"a-1","source":"/desk","type":"orders.done","correlationid":"'$message'","data":{"ok":true}}'
result='{"delivery":"'$delivery'","token":"'$token'","outcome":"delivered","evidence":{"level":"transport"}}'
api "$adapter" /v1/settle '{"epoch":'"$epoch"',"results":['"$result"'],"emit":['"$answer"'],"state":{"last":"MQ=="}}'

echo "== state: the next session has it"
api "$adapter" /v1/session '{}'

echo "== show: what became of the message, step by step"
api "$app" "/v1/messages/$message"

echo "== receive: the app reads the answer from its inbox"
leased=$(api "$app" /v1/queues/answers/lease '{"max":1}')
echo "$leased"
result='{"delivery":"'$(echo "$leased" | first id)'","token":"'$(echo "$leased" | first token)'","outcome":"delivered"}'
api "$app" /v1/settle '{"results":['"$result"']}'

echo "== queues: everything is settled"
api "$admin" /v1/queues
