#!/bin/bash
# Stands in for pipepar where a launch script is tested: it works until USR1 stops it, with status 75,
# and has nothing left to do when it is resumed.
echo "given:$(printf ' [%s]' "$@")"
case " $* " in *" --resume "*) exit 0 ;; esac
trap 'exit 75' USR1
for _ in $(seq 240); do sleep 0.5; done
exit 1
