#!/bin/sh
# The interface of KServe's storage initializer: SOURCE DEST.
#
# SOURCE is a path, also after recast:// or file://. RECAST_TO is the dtype (bf16), RECAST_OPTIONS are
# more options of `recast convert`, separated by blanks. The script ends with recast's exit code;
# convert.sh, which replaces this process, explains it and tries again after 74.
set -uf

[ $# = 2 ] || { echo "usage: $0 SOURCE DEST" >&2; exit 2; }
source=${1#recast://}
# shellcheck disable=SC2086 # Options are words.
exec sh "${RECAST_CONVERT:-$(dirname "$0")/convert.sh}" "${source#file://}" "$2" \
    --to "${RECAST_TO:-bf16}" ${RECAST_OPTIONS:-}
