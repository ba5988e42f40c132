#!/usr/bin/env bash
# Makes the browser tests possible: Debian's Chromium, and fonts for Cyrillic and Chinese pages. Does nothing when all is there.
set -euo pipefail

have_browser() { command -v chromium >/dev/null || command -v chromium-browser >/dev/null; }
have_package() { dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }

missing=()
have_browser || missing+=(chromium)
for font in fonts-noto-core fonts-noto-cjk; do
    have_package "$font" || missing+=("$font")
done
((${#missing[@]})) || exit 0

ask() {
    echo "The browser tests need ${missing[*]}, and $1. Please install them: sudo apt-get install ${missing[*]}" >&2
    exit 1
}

sudo=()
command -v apt-get >/dev/null || ask "this system has no apt-get"
if ((EUID != 0)); then
    sudo -n true 2>/dev/null || ask "you are neither root nor allowed to sudo without a password"
    sudo=(sudo -n)
fi

echo "Installing ${missing[*]} for the browser tests ..." >&2
"${sudo[@]}" apt-get update -qq || echo "apt-get update failed; trying with the package lists at hand" >&2
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 ||
    ask "apt-get could not install them"
have_browser || ask "no chromium is on the PATH after the installation"
