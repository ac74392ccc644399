#!/bin/sh
# A small repository of Debian packages, for scenarios: made where it is used, signed with a throw-away key.
#
#   repository.sh key NAME FILE                     a key in $GNUPGHOME, its public half in FILE; prints its fingerprint
#   repository.sh deb FOLDER NAME VERSION [CONTENT] a package with what is in the folder CONTENT (DEBIAN/ in it too)
#   repository.sh index FOLDER CODENAME LABEL KEY   what apt reads, signed
set -eu
umask 022

key() {
    install -d -m 0700 "$GNUPGHOME"
    gpg --batch --quiet --pinentry-mode loopback --passphrase '' --quick-generate-key "$1" rsa3072 sign never
    gpg --batch --armor --export "=$1" > "$2"
    gpg --batch --with-colons --list-keys "=$1" | awk -F: '$1 == "fpr" { print $10; exit }'
}

deb() {
    folder=$1 name=$2 version=$3
    content=$(mktemp -d)
    [ $# -lt 4 ] || cp -a "$4/." "$content"
    mkdir -p "$folder" "$content/DEBIAN"
    cat >> "$content/DEBIAN/control" << EOF
Package: $name
Version: $version
Architecture: all
Maintainer: Nobody <nobody@localhost>
Description: package of a test
EOF
    chmod 0755 "$content" "$content/DEBIAN"
    dpkg-deb --root-owner-group --build "$content" "$folder/${name}_${version}_all.deb" > /dev/null
    rm -r "$content"
}

index() {
    cd "$1"
    for file in *.deb; do
        dpkg-deb --field "$file"
        printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' \
            "$file" "$(stat --format=%s "$file")" "$(sha256sum "$file" | cut -d' ' -f1)"
    done > Packages
    printf 'Origin: Debian\nLabel: %s\nCodename: %s\nDate: %s\nSHA256:\n %s %s Packages\n' "$3" "$2" \
        "$(date --utc --rfc-email)" "$(sha256sum Packages | cut -d' ' -f1)" "$(stat --format=%s Packages)" > Release
    rm -f InRelease
    gpg --batch --quiet --local-user "=$4" --clearsign --output InRelease Release
}

command=$1
shift
"$command" "$@"
