"""Certificates for tests: an authority of their own, and what it issues."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_VALID = datetime.timedelta(days=2)


class Issued(NamedTuple):
    """PEM files."""

    certificate: str
    key: str


class Authority:
    """A CA; its certificate is ``ca`` (a path)."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.ca = str(directory / f"{name}.pem")
        Path(self.ca).write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))

    def issue(self, file: str, *names: str, passphrase: bytes = b"") -> Issued:
        """A certificate for names or addresses (this machine's if none), in ``<file>.crt`` and ``<file>.key``; files
        that are there are replaced."""
        key = ec.generate_private_key(ec.SECP256R1())
        wanted = [_general_name(name) for name in names or ("localhost", "127.0.0.1")]
        builder = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, file)]), key).add_extension(
            x509.SubjectAlternativeName(wanted), critical=False
        )
        issued = Issued(str(self._directory / f"{file}.crt"), str(self._directory / f"{file}.key"))
        Path(issued.certificate).write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))
        Path(issued.key).write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption(),
            )
        )
        return issued

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _VALID)
            .not_valid_after(now + _VALID)
        )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
