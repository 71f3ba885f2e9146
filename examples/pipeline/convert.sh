#!/bin/sh
# recast convert for a pipeline: it has the same arguments and exit codes, and explains the latter.
#
#   convert.sh SOURCE DEST --to bf16 [options]
#
# After a failed read or write (74) it tries again: RECAST_TRIES times in all (3), RECAST_WAIT seconds
# apart (10). Any other failure ends the script with its exit code. SIGTERM and Ctrl-C are forwarded,
# even if the script is process 1 of a container. RECAST is the command to run (recast).
set -u

tries=${RECAST_TRIES:-3}
child=
stopped=

say() { echo "convert.sh: $*" >&2; }

stop() {
    stopped=$1
    # Background processes of a shell ignore Ctrl-C, so both signals become SIGTERM.
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap 'stop 130' INT
trap 'stop 143' TERM

attempt=1
while [ -z "$stopped" ]; do
    "${RECAST:-recast}" convert "$@" &
    child=$!
    [ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null
    code=0
    wait "$child" || code=$?
    if [ -n "$stopped" ]; then
        # The signal ended the wait, not necessarily the command.
        wait "$child" && code=0 || { last=$?; [ "$last" = 127 ] || code=$last; }
        [ "$code" != 143 ] || code=$stopped
    fi
    child=
    case $code in
        0) ;;
        1) say "a check failed (overflow, verification); nothing new was published; a person must decide" ;;
        2) say "the command line is wrong; fix it" ;;
        65) say "the source is damaged, incomplete or quantized; download it again or choose another" ;;
        73) say "the destination cannot be created: it is not empty, in use or inside the source, or the disk is full" ;;
        74)
            if [ "$attempt" -lt "$tries" ] && [ -z "$stopped" ]; then
                say "reading or writing failed, attempt $attempt of $tries; trying again"
                attempt=$((attempt + 1))
                # In steps, because a signal sent to a sleep that is just starting would be lost.
                seconds=${RECAST_WAIT:-10}
                while [ "$seconds" -gt 0 ] && [ -z "$stopped" ]; do
                    sleep 1
                    seconds=$((seconds - 1))
                done
                continue
            fi
            say "reading or writing failed, attempt $attempt of $tries; check the disk"
            ;;
        130 | 143) say "stopped; the same command continues" ;;
        *) say "ended with $code, which is not an exit code of recast: it was killed, or is not installed" ;;
    esac
    exit "$code"
done
exit "$stopped"
