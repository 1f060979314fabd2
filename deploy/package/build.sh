#!/usr/bin/env bash
# Builds freshen's Debian package and its archive for one architecture, to the same bytes wherever and whenever that is done.
#
#     VERSION=v1.2.3 SOURCE_DATE_EPOCH=1770120000 build.sh amd64|arm64 FOLDER
set -euo pipefail
: "${VERSION:?what to call it}" "${SOURCE_DATE_EPOCH:?when it is from}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
arch=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
cd "$here"
umask 022
export LC_ALL=C TZ=UTC

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
top=freshen-$VERSION-linux-$arch
archive=$work/$top

# A version of git's, such as 3f2c1ab, is older than any release; v1.2.0-rc.1 comes before 1.2.0.
case $VERSION in
v[0-9]* | [0-9]*.*) debian=$(sed -e 's/^v//' -e 's/-/~/' -e 's/-/./g' <<< "$VERSION") ;;
*) debian=0~$(date -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M).$(tr -c 'a-zA-Z0-9.\n' . <<< "$VERSION") ;;
esac

build() {
    CGO_ENABLED=0 GOOS=linux GOARCH=$1 GOFLAGS=-buildvcs=false GOWORK=off \
        go build -trimpath -ldflags "-s -w -X freshen/internal/app.linkedVersion=$VERSION" -o "$2" ./cmd/freshen
}
build "$arch" "$work/freshen"
# What the program says of itself is asked of one that runs here.
if [ "$arch" = "$(go env GOHOSTARCH)" ]; then
    cp "$work/freshen" "$work/here"
else
    build "$(go env GOHOSTARCH)" "$work/here"
fi

# Whose code is in it, and on what terms: every module's own licence file.
{
    cat deploy/package/copyright
    CGO_ENABLED=0 GOOS=linux GOARCH=$arch GOWORK=off go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/freshen |
        sort -u | while read -r module version dir; do
        printf '\n%s\n%s %s\n' "$(printf '=%.0s' {1..78})" "$module" "$version"
        for file in "$dir"/LICEN[CS]E* "$dir"/COPYING* "$dir"/NOTICE*; do
            if [ -f "$file" ]; then printf '\n'; tr -d '\r' < "$file"; fi
        done
    done
    printf '\n%s\nThe Go standard library\n\n' "$(printf '=%.0s' {1..78})"
    cat "$(go env GOROOT)/LICENSE"
} > "$work/copyright"

mkdir -p "$work"/{man,completion}
for page in freshen.1 freshen.yaml.5; do "$work/here" man "$page" > "$work/man/$page"; done
for shell in bash zsh fish; do "$work/here" completion "$shell" > "$work/completion/freshen.$shell"; done

# The package: every file at its place.
doc=$root/usr/share/doc/freshen
install -D -m 755 "$work/freshen" "$root/usr/bin/freshen"
for unit in deploy/systemd/*; do install -D -m 644 "$unit" "$root/usr/lib/systemd/system/$(basename "$unit")"; done
for page in "$work"/man/*; do
    section=$root/usr/share/man/man${page##*.}
    mkdir -p "$section"
    gzip -9n < "$page" > "$section/$(basename "$page").gz"
done
install -D -m 644 "$work/completion/freshen.bash" "$root/usr/share/bash-completion/completions/freshen"
install -D -m 644 "$work/completion/freshen.zsh" "$root/usr/share/zsh/vendor-completions/_freshen"
install -D -m 644 "$work/completion/freshen.fish" "$root/usr/share/fish/vendor_completions.d/freshen.fish"
install -D -m 644 "$work/copyright" "$doc/copyright"
install -D -m 644 README.md "$doc/README.md"
install -D -m 644 deploy/package/freshen.example.yaml "$doc/examples/freshen.yaml"
for page in docs/*.md; do install -D -m 644 "$page" "$doc/docs/$(basename "$page")"; done
for folder in nginx caddy grafana prometheus; do
    for file in deploy/"$folder"/*; do install -D -m 644 "$file" "$root/usr/share/freshen/$folder/$(basename "$file")"; done
done

# The archive: the same for every other system, in one folder.
mkdir -p "$archive"
cp -R "$root/usr/share/freshen" "$archive/deploy"
cp -R "$doc/docs" "$doc/examples" "$work/man" "$work/completion" "$archive/"
cp -R deploy/systemd "$archive/deploy/systemd"
install -m 755 "$work/freshen" "$archive/freshen"
install -m 644 README.md "$work/copyright" "$archive/"
chmod -R u=rwX,go=rX "$root" "$archive"
find "$root" "$archive" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

tar --sort=name --format=gnu --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -C "$work" -cf - "$top" | gzip -9n > "$work/archive"
ARCH=$arch DEBIAN_VERSION=$debian ROOT=$root \
    go tool -modfile=tools/nfpm/go.mod nfpm package --packager deb --config deploy/package/nfpm.yaml --target "$work/package" > "$work/log" ||
    { cat "$work/log" >&2; exit 1; }
mv "$work/archive" "$out/$top.tar.gz"
mv "$work/package" "$out/freshen_${debian}_$arch.deb"
echo "Built $out/$top.tar.gz and $out/freshen_${debian}_$arch.deb"
