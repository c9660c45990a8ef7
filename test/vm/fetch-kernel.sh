#!/bin/sh
# Unpacks Debian's cloud kernel to dist/vm/kernel (vmlinuz, lib/modules/VERSION), once. It is not installed: nothing on
# this machine boots it. dist/ because it belongs to this checkout, is no part of the repository, and goes with `rm -r dist`.
set -eu
cd "$(dirname "$0")/../.."
target=dist/vm/kernel

fail() { echo "setup: $*" >&2; exit 1; }

if [ -f "$target/vmlinuz" ]; then exit 0; fi
name_of() { apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1; }
package=$(name_of)
if [ -z "$package" ]; then
  apt-get update -qq || fail "apt-get update failed: see above"
  package=$(name_of)
fi
[ -n "$package" ] || fail "Debian's package linux-image-cloud-amd64 is not in the package lists: add a Debian source, or run without the part vm"

mkdir -p dist/vm
work=$(mktemp -d "$PWD/dist/vm/unpack.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "setup: unpacking the Debian package $package to $target (git-ignored): the kernel of the virtual machine; it is not installed"
(
  cd "$work"
  # As root apt warns that its own user cannot write here; that is no failure.
  { apt-get download -qq "$package" || { apt-get update -qq && apt-get download -qq "$package"; }; } 2>"$work/apt.log"
) || { cat "$work/apt.log" >&2; fail "apt-get could not download $package"; }
mkdir "$work/root" "$work/kernel"
dpkg-deb -x "$work"/linux-image-*.deb "$work/root"
version=$(ls "$work/root/lib/modules")
depmod -b "$work/root" "$version"
mkdir "$work/kernel/lib"
mv "$work/root/lib/modules" "$work/kernel/lib/modules"
mv "$work"/root/boot/vmlinuz-* "$work/kernel/vmlinuz"
rm -rf "$target"
mv "$work/kernel" "$target"
