"""Who says that he made a Windows program, and whether the file is still the one he signed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import lief

from cuckoo_api.reporting.bounds import Notes, take
from cuckoo_api.reporting.processors.formats.words import text, word

MAX_SIGNATURES = 10
MAX_CERTIFICATES = 50

_NAMES = {
    "C": "country",
    "ST": "state",
    "L": "locality",
    "O": "organization",
    "OU": "organizational_unit",
    "CN": "common_name",
    "emailAddress": "email",
}
_CHECKS = lief.PE.Signature.VERIFICATION_CHECKS.SKIP_CERT_TIME
"""A report that is made again says the same, also when a certificate has run out meanwhile."""
_FIELD = re.compile(r"(\w+)=((?:[^,\\]|\\.)*)")


def certificates(binary: Any, notes: Notes) -> list[dict[str, Any]]:
    """Cuckoo's ``signature``: every certificate that came with the file, each once."""
    found = {}
    for signature in take(binary.signatures, MAX_SIGNATURES, notes, "static.signature"):
        for certificate in take(
            signature.certificates, MAX_CERTIFICATES, notes, "static.signature"
        ):
            entry = _certificate(certificate)
            found[entry["sha1"]] = entry
    return list(found.values())


def authenticode(binary: Any, notes: Notes) -> dict[str, Any]:
    """What the signatures say of the file. Nobody is asked whether the signers may be trusted."""
    signatures = take(binary.signatures, MAX_SIGNATURES, notes, "static.pe_authenticode")
    return {
        "signed": bool(signatures),
        "verdict": _verdict(binary.verify_signature(_CHECKS)) if signatures else "NO_SIGNATURE",
        "sha1": bytes(binary.authentihash_sha1).hex(),
        "sha256": bytes(binary.authentihash_sha256).hex(),
        "signers": [
            {
                "issuer": text(signer.issuer, 1_000),
                "serial_number": bytes(signer.serial_number).hex(),
                "digest_algorithm": word(signer.digest_algorithm),
            }
            for signature in signatures
            for signer in take(signature.signers, MAX_CERTIFICATES, notes, "static.pe_authenticode")
        ],
    }


def _verdict(flags: Any) -> str:
    """``OK``, or what is wrong, as LIEF names it."""
    return " ".join(part.rpartition(".")[2] for part in str(flags).split("|"))


def _certificate(certificate: Any) -> dict[str, Any]:
    raw = bytes(certificate.raw)
    return {
        **_names(certificate.subject),
        "issuer": text(certificate.issuer, 1_000),
        "serial_number": bytes(certificate.serial_number).hex(),
        "valid_from": _date(certificate.valid_from),
        "valid_until": _date(certificate.valid_to),
        "md5": hashlib.md5(raw, usedforsecurity=False).hexdigest(),
        "sha1": hashlib.sha1(raw, usedforsecurity=False).hexdigest(),
    }


def _names(subject: str | bytes) -> dict[str, str | None]:
    """A distinguished name's parts, under Cuckoo's names; None for one that is missing."""
    names: dict[str, str | None] = dict.fromkeys(_NAMES.values())
    for key, value in _FIELD.findall(text(subject, 2_000)):
        if key in _NAMES:
            names[_NAMES[key]] = re.sub(r"\\(.)", r"\1", value)
    return names


def _date(parts: Iterable[int]) -> str:
    year, month, day, hour, minute, second = parts
    return f"{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"
