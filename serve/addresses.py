"""Which addresses are of the public internet."""

import ipaddress

# Global by their own look, and private by where they lead, or what they once were.
_OTHERS = [
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # IETF's own, RFC 6890
        "::/96",  # IPv4-compatible, RFC 4291
        "::ffff:0:0/96",  # IPv4-mapped, RFC 4291
        "64:ff9b::/96",  # NAT64, RFC 6052
        "64:ff9b:1::/48",  # NAT64 of one's own, RFC 8215
        "2001::/32",  # Teredo, RFC 4380
        "2002::/16",  # 6to4, RFC 3056
        "fec0::/10",  # site-local, RFC 3879
    )
]


def is_public(address: str) -> bool:
    """Whether a numeric address is global, for one host, and leads to no other address."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if getattr(ip, "scope_id", None) is not None or ip.is_multicast or ip.is_reserved:
        return False
    return ip.is_global and not any(ip in network for network in _OTHERS)
