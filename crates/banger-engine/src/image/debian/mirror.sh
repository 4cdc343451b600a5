# Lets mmdebstrap build from another mirror, given as MIRROR, and keeps the usual sources for the image itself: run by
# mmdebstrap before anything is fetched, with the new tree as $1. BANGER_KEY is a key's option of sources.list(5), or empty.
set -eu
sources="$1/etc/apt/sources.list"
mv "$sources" "$sources.default"
printf 'deb %s%s %s %s\n' "$BANGER_KEY" "$BANGER_MIRROR" "$BANGER_SUITE" "$BANGER_COMPONENTS" > "$sources"
