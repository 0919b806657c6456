#!/usr/bin/env bash
# Install Debian's Chromium and its driver where they are missing: bash tests/chromium.sh. Needs root.
set -euo pipefail
die() { echo "$*" >&2; exit 1; }

type chromium chromedriver >/dev/null 2>&1 && exit 0
[ "$(id -u)" = 0 ] || die "Installing Chromium needs root. \`make test CHROMIUM=no\` leaves out the tests that need it."
command -v apt-get >/dev/null || die "Chromium is not here, and without apt-get it cannot be installed."
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null
