"""Verifies the signature of a bundle before anything in the bundle is parsed.

The signature is that of OpenSSF Model Signing v1, in ``model.sig`` beside the files that it signs.
PyPI's ``model-signing`` verifies it, and is imported where a key is given alone. It has to name
every file of the folder but itself, and the folder may hold no link.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import stat
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokexport.runtimes.bundle.bundle_files import hash_file
from tokexport.runtimes.bundle.manifest import Manifest
from tokexport.runtimes.bundle.manifest_reader import read_manifest
from tokexport.runtimes.errors import SignatureError
from tokexport.runtimes.files.regular_files import read_at_most
from tokexport.runtimes.importing import import_runtime

SIGNATURE_NAME: Final = "model.sig"
#: The variable that names the public key of every bundle that is loaded.
KEY_VARIABLE: Final = "TOKEXPORT_PUBLIC_KEY"
_PREDICATE: Final = "https://model_signing/signature/v1.0"
#: Bytes of a signature, and of a key: one of a thousand files has some hundred thousand.
_LARGEST: Final = 1 << 24
_UNTRUSTED: Final = "Do not use this bundle: get it again from whom signed it."


@dataclass(frozen=True)
class Signer:
    """Who has to have signed a bundle.

    Attributes:
        public_key: The PEM file of an elliptic-curve key; None where it is a certificate.
        certificates: The PEM files of those that the signer's certificate has to come from.
    """

    public_key: Path | None = None
    certificates: tuple[Path, ...] = ()


#: Held while output, warnings and logging of the whole process are changed.
_PROCESS: Final = threading.Lock()
_ASKED: Final[ContextVar[Signer | None]] = ContextVar("signer")


def signer_of(
    public_key: str | os.PathLike[str] | None,
    certificates: Sequence[str | os.PathLike[str]] | None = None,
) -> Signer | None:
    """Returns who has to have signed a bundle; None where nobody has to.

    Args:
        public_key: The file of a key; None, without certificates, takes whom ``held_to`` names,
            else the key of ``TOKEXPORT_PUBLIC_KEY``, where it is set.
        certificates: Those that the signer's certificate has to come from.

    Raises:
        SignatureError: A key and certificates are given, an empty list of them, or the variable
            is set to nothing.
    """
    if public_key is not None and certificates is not None:
        raise SignatureError(
            "A signature is verified with a public key or with certificates, not with both.",
            fix="Leave one of them out.",
        )
    if certificates is not None:
        if not certificates:
            raise SignatureError(
                "The list of trusted certificates is empty.",
                fix="Pass the PEM file of one, or none at all to ask for no signature.",
            )
        return Signer(certificates=tuple(map(Path, certificates)))
    if public_key is not None:
        return Signer(Path(public_key))
    try:
        return _ASKED.get()
    except LookupError:
        given = os.environ.get(KEY_VARIABLE)
    if given == "":
        raise SignatureError(
            f"{KEY_VARIABLE} is set, and names no key.",
            fix="Let it name the PEM file of a public key, or unset it.",
        )
    return None if given is None else Signer(Path(given))


@contextmanager
def held_to(signer: Signer | None) -> Iterator[None]:
    """Holds the bundles that are read in a block to a signer, whatever the environment names.

    Args:
        signer: Who has to have signed them; None for nobody, as for those that are made here.
    """
    token = _ASKED.set(signer)
    try:
        yield
    finally:
        _ASKED.reset(token)


def trusted_manifest(
    bundle: Path,
    public_key: str | os.PathLike[str] | None = None,
    certificates: Sequence[str | os.PathLike[str]] | None = None,
) -> Manifest:
    """Reads the manifest of a bundle, which has to be signed first where a signature is asked for.

    Args:
        bundle: Its folder.
        public_key: As ``signer_of`` takes it.
        certificates: As ``signer_of`` takes them.

    Raises:
        RuntimeMissingError: A signature is asked for, and model-signing is not installed.
        SignatureError: A signature is asked for, and it is missing or does not hold.
        BundleError: There is no bundle, or its manifest is not valid.
    """
    if signer := signer_of(public_key, certificates):
        require_signature(bundle, signer)
    return read_manifest(bundle)


def require_signature(bundle: Path, signer: Signer) -> None:
    """Refuses a bundle that a signer did not sign as it is.

    Args:
        bundle: Its folder.
        signer: Who has to have signed it.

    Raises:
        RuntimeMissingError: model-signing is not installed.
        SignatureError: There is no signature, it is another's, a file was altered or added since,
            or the key cannot be read.
    """
    bundle = bundle.resolve()  # the folder itself may be reached by a link
    files = (signer.public_key,) if signer.public_key is not None else signer.certificates
    for path in files:
        _read(path, "The public key" if signer.public_key is not None else "The certificate")
    verifying = import_runtime("model_signing.verifying", extra="sign")
    hashing = import_runtime("model_signing.hashing", extra="sign")
    found = set(_files(bundle))
    path = bundle / SIGNATURE_NAME
    if SIGNATURE_NAME not in found:
        raise SignatureError(
            "The bundle is not signed, and a signature is asked for.",
            where=str(path),
            fix="Sign it: tokexport sign BUNDLE --key KEY, or get a signed one.",
        )
    signature = _read(path, "The signature")
    hashed = hashing.Config().set_ignored_paths(paths=[SIGNATURE_NAME], ignore_git_paths=False)
    config = verifying.Config().set_hashing_config(hashed)
    _use(config, signer)
    try:
        with _quiet():
            config.verify(bundle, path)
        covered = _signed_files(signature)
    except MemoryError:
        raise
    except Exception as error:  # ValueError, and classes of cryptography, OpenSSL and pydantic
        if type(error).__name__ == "X509StoreContextError":
            raise SignatureError(
                "The signer's certificate does not come from one that is trusted.",
                where=f"{path}: {error}",
                fix="Pass the root that it comes from, or do not use this bundle.",
            ) from error
        said = (str(error).splitlines() or [""])[0] or type(error).__name__
        if said.startswith("Signature mismatch"):
            said = _differences(bundle, found, _signed_files(signature))
        raise SignatureError(
            "The signature does not hold: another key, another signature, or files that changed.",
            where=f"{path}: {said:.400}",
            fix=_UNTRUSTED,
        ) from error
    if left := sorted(found - covered.keys() - {SIGNATURE_NAME}):
        raise SignatureError(
            f"The signature leaves out files of the bundle, as {left[0]!r:.80}.",
            where=str(path),
            fix="Sign the whole bundle: tokexport sign BUNDLE --key KEY.",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what model-signing prints, logs and warns of off the caller's output and filters.

    These are of the whole process, so one thread at a time changes them and puts them back.
    """
    logger = logging.getLogger("model_signing")
    with _PROCESS:
        before = logger.level
        logger.setLevel(logging.ERROR)
        try:
            with redirect_stdout(sys.stderr), warnings.catch_warnings(action="ignore"):
                yield
        finally:
            logger.setLevel(before)


def _use(config: Any, signer: Signer) -> None:
    """Gives the key or the certificates to a configuration of model-signing.

    Raises:
        SignatureError: They are of another kind.
    """
    try:
        if signer.public_key is not None:
            config.use_elliptic_key_verifier(public_key=signer.public_key)
        else:
            config.use_certificate_verifier(certificate_chain=signer.certificates)
    except MemoryError:
        raise
    except Exception as error:  # ValueError, AttributeError of RSA, and classes of cryptography
        key = signer.public_key
        raise SignatureError(
            "The file holds no public key on P-256, P-384 or P-521."
            if key is not None
            else "The files hold no certificates, or something else too.",
            where=str(key or ", ".join(map(str, signer.certificates))),
            fix="Pass the PEM file of one.",
        ) from error


def _files(bundle: Path) -> Iterator[str]:
    """Yields the name of every file below a folder.

    Raises:
        SignatureError: There is no folder, or it holds a link, a pipe, a socket or a device.
    """
    left = [bundle]
    while left:
        folder = left.pop()
        try:
            entries = [*os.scandir(folder)]
        except OSError as error:
            raise SignatureError(
                f"The bundle cannot be read: {error.strerror}.",
                where=str(folder),
                fix="Pass the folder that compile wrote.",
            ) from error
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            path = Path(entry.path)
            if stat.S_ISDIR(mode):
                left.append(path)
            elif stat.S_ISREG(mode):
                yield path.relative_to(bundle).as_posix()
            else:
                raise SignatureError(
                    "The bundle holds a link or something else that is no plain file.",
                    where=str(path),
                    fix=_UNTRUSTED,
                )


def _signed_files(signature: bytes) -> dict[str, str]:
    """Returns the hash of each file in a signature that was verified, by name.

    Raises:
        ValueError: It is not of version 1.
    """
    envelope: dict[str, Any] = json.loads(signature)["dsseEnvelope"]
    payload = json.loads(base64.b64decode(envelope["payload"]))
    if payload["predicateType"] != _PREDICATE:
        raise ValueError(f"it is of {payload['predicateType']}, and not of {_PREDICATE}")
    return {one["name"]: one["digest"] for one in payload["predicate"]["resources"]}


def _differences(bundle: Path, found: set[str], signed: dict[str, str]) -> str:
    """Returns which files of a bundle are not those of its signature."""
    there = found - {SIGNATURE_NAME}
    kinds = {
        "altered": [one for one in there & signed.keys() if hash_file(bundle / one) != signed[one]],
        "added": [*(there - signed.keys())],
        "missing": [*(signed.keys() - there)],
    }
    shown = (f"{kind}: {', '.join(sorted(names)[:8])}" for kind, names in kinds.items() if names)
    return "; ".join(shown)


def _read(path: Path, what: str) -> bytes:
    try:
        return read_at_most(path, _LARGEST)
    except OSError as error:
        raise SignatureError(
            f"{what} cannot be read: {error.strerror}.",
            where=str(path),
            fix="Pass a PEM file that is there.",
        ) from error
