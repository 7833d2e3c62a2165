#!/bin/sh
# Leaves of uWebSockets.js only the binary for this machine's CPU, Linux and Node 20, after checking what it is.
set -eu
folder=$1
case $(uname -m) in
  x86_64) binary=uws_linux_x64_115.node sum=f4fa5d7b697529b45ac8aa3d57385d9af51bc1d2b26aa9f5b68ca4361542e665 ;;
  aarch64) binary=uws_linux_arm64_115.node sum=034e0fcccdc08f90df3b130f421516311831b1352fe38eab91abc2984c2fdf3a ;;
  *) echo "no binary of uWebSockets.js for $(uname -m)" >&2 && exit 1 ;;
esac
echo "$sum  $folder/$binary" | sha256sum -c -
find "$folder" -name '*.node' ! -name "$binary" -delete
