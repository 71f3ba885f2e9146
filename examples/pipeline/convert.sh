#!/bin/sh
# recast convert for a pipeline: the same arguments, the same exit code, and what to do about it.
#
#   convert.sh SOURCE DEST --to bf16 [options]
#
# A failed read or write (74) is tried again: RECAST_TRIES times in all (3), RECAST_WAIT seconds
# apart (10). Everything else ends here, with its exit code. SIGTERM and Ctrl-C are passed on, also
# where this is process 1 of a container. RECAST names the command (recast).
set -u

tries=${RECAST_TRIES:-3}
child=
stopped=

say() { echo "convert.sh: $*" >&2; }

stop() {
    stopped=$1
    # A shell lets what it starts in the background ignore Ctrl-C, so both become SIGTERM.
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
        1) say "a check failed (overflow, verification); nothing new was published, someone must decide" ;;
        2) say "the command line is wrong; mend it" ;;
        65) say "the source is damaged, incomplete or quantized; fetch it again or choose another" ;;
        73) say "the destination cannot be created: not empty, in use, inside the source, or no room" ;;
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
            say "reading or writing failed, attempt $attempt of $tries; look at the disk"
            ;;
        130 | 143) say "stopped; the same command continues" ;;
        *) say "ended with $code, which is none of recast's exit codes: killed, or not installed" ;;
    esac
    exit "$code"
done
exit "$stopped"
