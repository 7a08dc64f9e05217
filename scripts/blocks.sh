# shellcheck shell=bash
# Sourced, after common.sh: the commands that a document shows, for the tests that type them. A block of them
# opens with ```sh PLACE, where PLACE says which test runs it; one in a sentence stands between backticks.

# blocks FILE PLACE: the number of the first line of each block of that place.
blocks() {
  awk -v opens="\`\`\`sh $2" '$0 == opens { print NR + 1 }' "$1"
}

# block FILE LINE: the text of the block that begins there.
block() {
  awk -v from="$2" 'NR >= from { if (/^```/) exit; print }' "$1"
}

# block_of FILE PLACE: the text of the only block of that place.
block_of() {
  local at
  at=$(blocks "$1" "$2")
  [[ $at =~ ^[0-9]+$ ]] || fail "$(basename "$1") has not one block '$2'"
  block "$1" "$at"
}

# inline FILE COMMAND: the command, which has to stand in a sentence of the file.
inline() {
  tr -s '\n' ' ' <"$1" | grep --quiet --fixed-strings "\`$2\`" ||
    fail "$(basename "$1") does not say '$2'"
  printf '%s\n' "$2"
}
