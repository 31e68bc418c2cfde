#!/bin/sh
# Installs Muster's first-boot unit on this machine and starts it. Run as root:
#   curl -fsS http://10.213.0.1:8100/first-boot/install.sh | MUSTER_TOKEN=... sh
# The token comes from the environment, never from the command line, which others can read.
set -eu
umask 077

fail() {
    echo "muster: $1" >&2
    exit 1
}

check() {
    [ "$(id -u)" -eq 0 ] || fail "run this as root"
    [ -n "${MUSTER_TOKEN:-}" ] || fail "MUSTER_TOKEN is not set; 'muster machine add NAME' prints the whole line"
    case $MUSTER_TOKEN in
        *[!A-Za-z0-9_-]*) fail "MUSTER_TOKEN is not a token: it holds other characters than A-Z a-z 0-9 - _" ;;
    esac
    command -v systemctl >/dev/null || fail "this machine has no systemd"
    [ -x /usr/bin/python3 ] || fail "python3 is missing: apt-get install python3"
    ls /etc/ssh/ssh_host_*_key.pub >/dev/null 2>&1 || fail "there are no SSH host keys: apt-get install openssh-server"
}

# put PATH MODE: standard input becomes the file, whole or not at all.
put() {
    cat > "$1.muster-new"
    chmod "$2" "$1.muster-new"
    mv -f "$1.muster-new" "$1"
}

install_files() {
    mkdir -p -m 0755 /etc/muster /etc/systemd/system /usr/local/lib/muster
    put /etc/muster/first-boot.json 0644 <<'END_OF_MUSTER_FILE'
{"api_url": "http://10.213.0.1:8100"}
END_OF_MUSTER_FILE
    put /usr/local/lib/muster/muster_first_boot.py 0755 <<'END_OF_MUSTER_FILE'
<muster_first_boot.py>
END_OF_MUSTER_FILE
    put /etc/systemd/system/muster-first-boot.service 0644 <<'END_OF_MUSTER_FILE'
<muster-first-boot.service>
END_OF_MUSTER_FILE
    printf '%s\n' "$MUSTER_TOKEN" | put /etc/muster/token 0600
}

authorize() {
    mkdir -p -m 0700 /root/.ssh
    touch /root/.ssh/authorized_keys
    # A last line without its end would swallow the key.
    [ -z "$(tail -c 1 /root/.ssh/authorized_keys)" ] || echo >> /root/.ssh/authorized_keys
    grep -qxF 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0FQvY6dCkVrGhPn3lVKf3dP1Vv0Yk5nJ2Q5rQ4yq1s me@here' /root/.ssh/authorized_keys || printf '%s\n' 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0FQvY6dCkVrGhPn3lVKf3dP1Vv0Yk5nJ2Q5rQ4yq1s me@here' >> /root/.ssh/authorized_keys
}

start() {
    systemctl daemon-reload
    systemctl enable --quiet muster-first-boot.service
    systemctl restart --no-block muster-first-boot.service
    echo "muster: this machine calls home now; follow it with: journalctl -fu muster-first-boot.service"
}

# Called last, so that a download cut short does nothing.
main() {
    check
    install_files
    authorize
    start
}

main
