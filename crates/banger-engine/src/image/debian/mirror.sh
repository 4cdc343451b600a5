# Lets mmdebstrap build from another mirror, given as MIRROR, and keeps the usual sources for the image itself: run by
# mmdebstrap before anything is fetched, with the new tree as $1.
set -eu
sources="$1/etc/apt/sources.list"
mv "$sources" "$sources.default"
printf 'deb %s %s main\n' "$BANGER_MIRROR" "$BANGER_SUITE" > "$sources"
