"""Signs a bundle by a key or a certificate of one's own: OpenSSF Model Signing v1, offline.

The signature is ``model.sig`` in the bundle; it covers every other file, the manifest too. The
package ``model-signing`` makes and verifies it, and its own command line does so too.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from tokexport.exporter.errors import (
    ExporterError,
    OutputExistsError,
    PackageMissingError,
    UsageError,
    WriteError,
    listed,
)
from tokexport.exporter.json_values import plain
from tokexport.exporter.package.content import read_content
from tokexport.exporter.system.output_file import written_whole
from tokexport.exporter.system.scratch import scratch_folder
from tokexport.runtimes.signatures import SIGNATURE_NAME, held_to

#: Object identifiers of RFC 5280.
_KEY_USAGE: Final = "2.5.29.15"
_EXTENDED_KEY_USAGE: Final = "2.5.29.37"
_CODE_SIGNING: Final = "1.3.6.1.5.5.7.3.3"


@dataclass(frozen=True)
class SignedBundle:
    """A bundle that was signed.

    Attributes:
        bundle: The bundle.
        signature: The signature's file, in it.
        covered: The names of the files that it covers, sorted.
        certificate: The certificate that goes with it; None for a key alone.
    """

    bundle: Path
    signature: Path
    covered: tuple[str, ...]
    certificate: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values under the attributes' names."""
        found: dict[str, Any] = plain(self)
        return found


def sign_bundle(
    bundle: Path,
    key: Path,
    *,
    certificate: Path | None = None,
    chain: Sequence[Path] = (),
    force: bool = False,
) -> SignedBundle:
    """Signs a bundle whose files have the hashes that its manifest says.

    Args:
        bundle: Its folder, to which ``model.sig`` is added.
        key: The PEM file of an elliptic-curve private key, P-256, P-384 or P-521.
        certificate: The PEM file of the key's certificate, which then goes with the signature.
        chain: The PEM files of the certificates between it and the root.
        force: Whether a signature that is there is replaced.

    Raises:
        PackageMissingError: model-signing is not installed.
        UsageError: A key or a certificate cannot be read or used, or the bundle holds files that
            its manifest does not list.
        OutputExistsError: The bundle is signed already.
        BundleError: The bundle is not whole.
        WriteError: The signature cannot be written.
    """
    if missing := [name for name in ("model_signing", "OpenSSL") if find_spec(name) is None]:
        raise PackageMissingError(
            f"Signing needs {' and '.join(missing)}, which this Python does not have.",
            fix="pip install 'tokexport[sign]'",
        )
    if chain and certificate is None:
        raise UsageError("--chain goes with a certificate.", fix="Pass --certificate too.")
    with held_to(None):  # whoever signed it before
        content = read_content(bundle)
    place, folder = bundle / SIGNATURE_NAME, bundle.resolve()
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    if strangers := sorted(found - content.files.keys() - {SIGNATURE_NAME}):
        raise UsageError(
            "The bundle has files in it that compile did not write there.",
            where=f"{bundle}: {listed(strangers)}",
            fix="Move them away: a signature covers the whole folder.",
        )
    if place.exists() and not force:
        raise OutputExistsError(
            "The bundle is signed already.",
            where=str(place),
            fix="Pass --force to replace the signature.",
        )
    with scratch_folder() as scratch:
        made = scratch / SIGNATURE_NAME
        _sign(folder, made, key, certificate, chain)
        with written_whole(place, "signature") as partial:
            shutil.copyfile(made, partial)
    return SignedBundle(
        bundle, place, tuple(sorted(content.files.keys() - {SIGNATURE_NAME})), certificate
    )


def _check_certificate(path: Path) -> None:
    """Refuses a certificate whose signatures nobody should accept; verifying asks for no date.

    Raises:
        UsageError: It is not valid today, or is not for signing.
    """
    from OpenSSL import crypto

    loaded = crypto.load_certificate(crypto.FILETYPE_PEM, path.read_bytes()).to_cryptography()
    first, last = loaded.not_valid_before_utc, loaded.not_valid_after_utc
    if not first <= datetime.now(UTC) <= last:
        raise UsageError(
            f"The certificate is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d}, and not today.",
            where=str(path),
            fix="Pass one that is valid.",
        )
    values = {one.oid.dotted_string: one.value for one in loaded.extensions}
    usages = [one.dotted_string for one in values.get(_EXTENDED_KEY_USAGE, ())]
    usage = values.get(_KEY_USAGE)
    if not (usage is not None and usage.digital_signature) and _CODE_SIGNING not in usages:
        raise UsageError(
            "The certificate is not for signing: it has no key usage digitalSignature.",
            where=str(path),
            fix="Have it made with keyUsage=digitalSignature (openssl req: -addext).",
        )


def _sign(
    bundle: Path, output: Path, key: Path, certificate: Path | None, chain: Sequence[Path]
) -> None:
    """Writes the signature of a folder."""
    from model_signing import hashing, signing

    hashed = hashing.Config().set_ignored_paths(paths=[SIGNATURE_NAME], ignore_git_paths=False)
    config = signing.Config().set_hashing_config(hashed)
    try:
        if certificate is None:
            config.use_elliptic_key_signer(private_key=key)
        else:
            config.use_certificate_signer(
                private_key=key,
                signing_certificate=certificate,
                certificate_chain=chain or (certificate,),  # it takes no empty one
            )
            _check_certificate(certificate)
    except (ExporterError, MemoryError):
        raise
    except Exception as error:  # ValueError, AttributeError of RSA, and classes of cryptography
        said = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
        if isinstance(error, AttributeError):  # which keys of RSA and of Ed25519 end in
            said = "it is no key on an elliptic curve"
        raise UsageError(
            "The bundle cannot be signed by this key or certificate.",
            where=f"{key}{'' if certificate is None else f', {certificate}'}: {said}",
            fix="Pass a PEM key without a password, on P-256, P-384 or P-521, and its certificate.",
        ) from error
    try:
        config.sign(bundle, output)
    except OSError as error:
        raise WriteError(
            f"The signature cannot be made: {error.strerror or error}.",
            where=str(error.filename or output),
            fix="Make room for temporary files, and let the bundle be read.",
        ) from error
