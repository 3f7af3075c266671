#!/usr/bin/env bash
# Installs Debian's OpenSSH server, for the tests that reach this machine over ssh; starts nothing.
#
# Needs apt and the rights of root: a server that root runs wants a user and a folder of its own,
# which the package makes.
set -euo pipefail
test -x /usr/sbin/sshd && exit 0
test "$(id -u)" = 0
policy=/usr/sbin/policy-rc.d
if ! test -e "$policy"; then # what Debian asks before it starts a service
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq -y --no-install-recommends install openssh-server openssh-client > /dev/null
