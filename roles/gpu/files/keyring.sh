#!/bin/sh
# Make a keyring of the one key that has the wanted fingerprint: keyring.sh ADDRESS FINGERPRINT KEYRING
# What was fetched stays in a folder of its own until it is known to be that key.
set -eu
umask 077

address=$1 fingerprint=$2 keyring=$3
folder=$(mktemp -d)
mkdir "$folder/home"
trap 'rm -rf "$folder"' EXIT

# Fingerprints of the primary keys in a file, one a line.
primary() {
    gpg --homedir "$folder/home" --batch --quiet --with-colons --show-keys "$1" |
        awk -F: '$1 == "pub" { primary = 1 } $1 == "fpr" && primary { print $10; primary = 0 }'
}

if [ -s "$keyring" ] && [ "$(primary "$keyring")" = "$fingerprint" ]; then
    exit 0
fi
# Apt's own, so that its proxy is used. It gives up root for the download.
chmod 0711 "$folder"
install -d -o _apt -m 0700 "$folder/download"
/usr/lib/apt/apt-helper download-file "$address" "$folder/download/key" > /dev/null
found=$(primary "$folder/download/key")
if [ "$found" != "$fingerprint" ]; then
    echo "the key is $(echo "${found:-none}" | paste -sd ' '), not $fingerprint" >&2
    exit 1
fi
gpg --homedir "$folder/home" --batch --quiet --no-default-keyring --keyring "$folder/ring" --import "$folder/download/key"
gpg --homedir "$folder/home" --batch --quiet --no-default-keyring --keyring "$folder/ring" \
    --export --export-options export-minimal "$fingerprint" > "$folder/trusted"
install -m 0644 "$folder/trusted" "$keyring"
echo "trusted $fingerprint"
