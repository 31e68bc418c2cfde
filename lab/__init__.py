"""Machines without hardware: Debian 13 in systemd-nspawn, in network namespaces of their own."""
