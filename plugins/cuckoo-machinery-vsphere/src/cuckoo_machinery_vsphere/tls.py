"""How the server's certificate is checked, for every connection that is made to it.

pyVmomi's own means do not hold: without a context it does not verify loopback addresses at all,
and its ``thumbprint`` is looked at once, and not for the connections that it opens later.
"""

from __future__ import annotations

import hashlib
import socket
import ssl

from cuckoo_machinery_vsphere.settings import Server


class WrongCertificate(OSError):
    """The server shows another certificate than the one that it was pinned to."""


def tls_context(server: Server) -> ssl.SSLContext:
    """What checks the server's certificate as it was configured. Blocks for a pinned one.

    A pinned certificate is fetched (nothing is sent for that but the handshake), compared, and
    then the one thing that the context trusts: so a later connection that meets another one fails.
    """
    if not server.verified:
        return _unverified()
    if not server.thumbprint:
        return ssl.create_default_context(cafile=server.ca_file)
    certificate = _fetch(server)
    found = hashlib.sha256(certificate).hexdigest()
    if found != server.thumbprint:
        raise WrongCertificate(f"its certificate has the SHA-256 thumbprint {found}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the certificate is known itself, whatever name it carries
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate)
    return context


def _unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _fetch(server: Server) -> bytes:
    address = server.host, server.port
    with (
        socket.create_connection(address, server.timeout) as plain,
        _unverified().wrap_socket(plain, server_hostname=server.host) as connection,
    ):
        return connection.getpeercert(binary_form=True) or b""
