#!/bin/bash
# Takes the place of pipepar in tests of launch scripts: it runs until SIGUSR1 stops it with status
# 75, and exits with status 0 when it is resumed.
echo "given:$(printf ' [%s]' "$@")"
case " $* " in *" --resume "*) exit 0 ;; esac
trap 'exit 75' USR1
for _ in $(seq 240); do sleep 0.5; done
exit 1
