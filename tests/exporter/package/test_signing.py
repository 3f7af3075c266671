"""Signatures of bundles: what is refused, and that model-signing's own command takes them."""

from __future__ import annotations

import base64
import datetime
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from helpers.cli import refusal, tokexport

from tokexport.exporter.bundle.bundle_folder import BundleWriter
from tokexport.exporter.errors import OutputExistsError
from tokexport.exporter.package.package import package_bundle
from tokexport.exporter.package.signing import sign_bundle
from tokexport.runtimes.errors import BundleError, RuntimeMissingError, SignatureError
from tokexport.runtimes.loading import load
from tokexport.runtimes.signatures import (
    KEY_VARIABLE,
    Signer,
    held_to,
    require_signature,
    signer_of,
    trusted_manifest,
)
from tokexport.runtimes.verification import verify_bundle

#: model-signing's own command line, which knows nothing of tokexport.
MODEL_SIGNING = (sys.executable, "-m", "model_signing", "--log-level", "error")

#: The object identifier of the curve P-256, 1.2.840.10045.3.1.7, in DER.
P256 = bytes.fromhex("06082a8648ce3d030107")


@dataclass(frozen=True)
class Keys:
    """PEM files: a key with its public half, a root, and a certificate that it gave to the key."""

    private: Path
    public: Path
    root: Path
    certificate: Path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("others"))


def make_keys(folder: Path, curve: ec.EllipticCurve | None = None) -> Keys:
    key, root_key = (ec.generate_private_key(curve or ec.SECP256R1()) for _ in range(2))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / "key.pub").write_bytes(public)
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    root_name, name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("root", "signer")
    )
    for file, subject, its_key, is_root in (
        ("root.pem", root_name, root_key, True),
        ("certificate.pem", name, key, False),
    ):
        usage = x509.KeyUsage(not is_root, *[False] * 4, is_root, *[False] * 3)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root_name)
            .public_key(its_key.public_key())
            .serial_number(7)
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(root_key, hashes.SHA256())
        )
        (folder / file).write_bytes(made.public_bytes(serialization.Encoding.PEM))
    names = ("key.pem", "key.pub", "root.pem", "certificate.pem")
    return Keys(*(folder / one for one in names))


@pytest.fixture
def signed(ort_bundle: Path, tmp_path: Path, keys: Keys) -> Path:
    shutil.copytree(ort_bundle, bundle := tmp_path / "signed")
    sign_bundle(bundle, keys.private)
    return bundle


def model_signing(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MODEL_SIGNING, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


def test_a_signed_bundle_loads_runs_and_verifies(
    ort_bundle: Path, tmp_path: Path, keys: Keys
) -> None:
    shutil.copytree(ort_bundle, bundle := tmp_path / "bundle")
    answer = tokexport("sign", bundle, "--key", keys.private, "--json")
    assert answer.code == 0, answer
    assert answer.json["covered"] == sorted(one.name for one in ort_bundle.iterdir())
    with load(bundle, public_key=keys.public) as runner:
        assert runner.outputs
    assert verify_bundle(bundle, public_key=str(keys.public)).passed
    answer = tokexport("verify", bundle, "--public-key", keys.public, "--json")
    assert answer.code == 0, answer
    assert answer.json["status"] == "PASSED"
    moved = bundle.rename(tmp_path / "another-name")
    with load(moved, public_key=keys.public):
        pass
    with load(moved):  # and without a key, as before
        pass


def test_run_takes_the_key(signed: Path, tmp_path: Path, keys: Keys, others: Keys) -> None:
    import numpy as np

    np.savez(tmp_path / "in.npz", image=np.zeros((2, 1, 8, 8), np.float32))
    given = ("run", signed, "--inputs", tmp_path / "in.npz", "--output", tmp_path / "out.npz")
    refusal(tokexport(*given, "--public-key", others.public), 5, tmp_path, "does not hold")
    assert not (tmp_path / "out.npz").exists()
    assert tokexport(*given, "--public-key", keys.public).code == 0


def unsigned(bundle: Path, keys: Keys) -> str:
    (bundle / "model.sig").unlink()
    return "is not signed"


def altered_manifest(bundle: Path, keys: Keys) -> str:
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"PASSED"', '"PASSED" '))
    return "altered: manifest.json"


def altered_weights(bundle: Path, keys: Keys) -> str:
    with (bundle / "model.onnx").open("r+b") as file:
        file.seek(200)
        file.write(b"\1")
    return "altered: model.onnx"


def no_json_any_more(bundle: Path, keys: Keys) -> str:
    (bundle / "manifest.json").write_text("{" * 100_000)  # never parsed
    return "altered: manifest.json"


def extra_file(bundle: Path, keys: Keys) -> str:
    (bundle / "sitecustomize.py").write_text("print('mine')")
    return "added: sitecustomize.py"


def hidden_file(bundle: Path, keys: Keys) -> str:
    (bundle / ".gitattributes").write_text("")  # model-signing passes over those by default
    return ".gitattributes"


def file_in_git(bundle: Path, keys: Keys) -> str:
    (bundle / ".git").mkdir()
    (bundle / ".git" / "config").write_text("")
    return "config"


def missing_file(bundle: Path, keys: Keys) -> str:
    (bundle / "report.json").unlink()
    return "missing: report.json"


def link_to_itself(bundle: Path, keys: Keys) -> str:
    (bundle / "reference.npz").rename(bundle.parent / "reference.npz")
    (bundle / "reference.npz").symlink_to(bundle.parent / "reference.npz")
    return "holds a link"


def link_beside(bundle: Path, keys: Keys) -> str:
    (bundle / "passwd").symlink_to("/etc/passwd")
    return "holds a link"


def linked_signature(bundle: Path, keys: Keys) -> str:
    (bundle / "model.sig").rename(bundle.parent / "model.sig")
    (bundle / "model.sig").symlink_to(bundle.parent / "model.sig")
    return "holds a link"


def pipe(bundle: Path, keys: Keys) -> str:
    os.mkfifo(bundle / "pipe")  # reading it would wait for ever
    return "holds a link or something else"


def folder_for_a_signature(bundle: Path, keys: Keys) -> str:
    (bundle / "model.sig").unlink()
    (bundle / "model.sig").mkdir()
    return "is not signed"


def of_another_bundle(bundle: Path, keys: Keys) -> str:
    shutil.copytree(bundle, other := bundle.parent / "other")
    (other / "model.sig").unlink()
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["created"] = "2026-02-03T04:05:06+00:00"
    (other / "manifest.json").write_text(json.dumps(manifest))
    sign_bundle(other, keys.private)
    shutil.copy(other / "model.sig", bundle / "model.sig")
    return "altered: manifest.json"


def no_json(bundle: Path, keys: Keys) -> str:
    (bundle / "model.sig").write_bytes(b"\xff\xfe")
    return "does not hold"


def empty(bundle: Path, keys: Keys) -> str:
    (bundle / "model.sig").write_text("{}")
    return "does not hold"


def too_large(bundle: Path, keys: Keys) -> str:
    os.truncate(bundle / "model.sig", 1 << 25)
    return "more than 16,777,216 bytes"


def signed_content(bundle: Path, change: Callable[[dict], None]) -> None:
    """Changes what a signature says that it signs."""
    path = bundle / "model.sig"
    data = json.loads(path.read_text())
    payload = json.loads(base64.b64decode(data["dsseEnvelope"]["payload"]))
    change(payload)
    data["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    path.write_text(json.dumps(data))


def altered_payload(bundle: Path, keys: Keys) -> str:
    signed_content(bundle, lambda payload: payload["predicate"]["resources"].pop())
    return "does not hold"


def no_signatures(bundle: Path, keys: Keys) -> str:
    data = json.loads((bundle / "model.sig").read_text())
    data["dsseEnvelope"]["signatures"] = []
    (bundle / "model.sig").write_text(json.dumps(data))
    return "does not hold"


def leaves_files_out(bundle: Path, keys: Keys) -> str:
    """A signature of the right key that passes over the artifact and what lies beside it."""
    left = bundle / "model.onnx"
    done = model_signing(
        *("sign", "key", bundle, "--private_key", keys.private),
        *("--signature", bundle / "model.sig", "--ignore-paths", left),
    )
    assert done.returncode == 0, done.stderr
    return "leaves out files of the bundle, as 'model.onnx'"


FAULTS = [
    *(unsigned, altered_manifest, altered_weights, no_json_any_more, extra_file, hidden_file),
    *(file_in_git, missing_file, link_to_itself, link_beside, linked_signature, pipe),
    *(folder_for_a_signature, of_another_bundle, no_json, empty, too_large, altered_payload),
    *(no_signatures, leaves_files_out),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused(fault: Callable[[Path, Keys], str], signed: Path, keys: Keys) -> None:
    said = fault(signed, keys)
    for refuse in (load, verify_bundle):
        with pytest.raises(SignatureError) as caught:
            refuse(signed, public_key=keys.public)
        assert said in str(caught.value)
    answer = tokexport("verify", signed, "--public-key", keys.public)
    assert answer.code == 5
    assert said in answer.said


def test_another_key_is_refused(signed: Path, keys: Keys, others: Keys) -> None:
    with pytest.raises(SignatureError, match="another key"):
        load(signed, public_key=others.public)
    for path in (keys.private, keys.certificate, signed / "model.onnx"):
        with pytest.raises(SignatureError, match="holds no public key on P-256"):
            load(signed, public_key=path)
        if path != keys.certificate:
            with pytest.raises(SignatureError, match="hold no certificates"):
                load(signed, certificates=[path])
    for path in (Path("nowhere.pem"), signed):
        with pytest.raises(SignatureError, match="The public key cannot be read"):
            load(signed, public_key=path)
    with pytest.raises(SignatureError, match="list of trusted certificates is empty"):
        load(signed, certificates=[])  # as a pattern that matches no file gives
    with pytest.raises(SignatureError, match="not with both"):
        load(signed, public_key=keys.public, certificates=[keys.root])


def test_the_environment_names_a_key_for_all_bundles(
    signed: Path, keys: Keys, others: Keys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, str(others.public))
    for refuse in (
        lambda: load(signed),
        lambda: verify_bundle(signed),
        lambda: package_bundle(signed, "tar", tmp_path / "b.tar"),
    ):
        with pytest.raises(SignatureError):
            refuse()
    with load(signed, public_key=keys.public):  # the call's own key goes first
        pass
    assert verify_bundle(signed, public_key=keys.public).passed
    with held_to(signer_of(keys.public)):
        assert trusted_manifest(signed).files
    monkeypatch.setenv(KEY_VARIABLE, "")
    with pytest.raises(SignatureError, match="names no key"):
        load(signed)


def test_a_key_without_the_package_is_a_refusal(
    signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model_signing", "model_signing.verifying", "model_signing.hashing"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RuntimeMissingError) as caught:
        load(signed, public_key=keys.public)
    assert "pip install 'tokexport[sign]'" in caught.value.fix
    with load(signed):
        pass


def test_loading_without_a_key_imports_none_of_it(signed: Path) -> None:
    program = (
        "import sys, tokexport.runtimes\n"
        f"tokexport.runtimes.load({str(signed)!r}).close()\n"
        "assert not [n for n in sys.modules if n.startswith(('model_signing', 'cryptography'))]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_model_signing_verifies_our_signature(signed: Path, keys: Keys, others: Keys) -> None:
    def verified(key: Path) -> bool:
        asked = ("--signature", signed / "model.sig", "--public_key", key)
        return model_signing("verify", "key", signed, *asked).returncode == 0

    assert verified(keys.public)
    assert not verified(others.public)
    (signed / "extra").write_text("x")
    assert not verified(keys.public)


def test_we_verify_a_signature_of_model_signing(
    ort_bundle: Path, tmp_path: Path, keys: Keys
) -> None:
    shutil.copytree(ort_bundle, bundle := tmp_path / "bundle")
    asked = ("--signature", bundle / "model.sig", "--private_key", keys.private)
    done = model_signing("sign", "key", bundle, *asked)
    assert done.returncode == 0, done.stderr
    with load(bundle, public_key=keys.public):
        pass
    (bundle / ".gitignore").write_text("*")  # which that signature passes over
    with pytest.raises(SignatureError, match="leaves out files"):
        load(bundle, public_key=keys.public)


def test_certificates(signed: Path, keys: Keys, others: Keys, tmp_path: Path) -> None:
    given = ("sign", signed, "--key", keys.private, "--certificate", keys.certificate)
    refusal(tokexport(*given), 2, tmp_path, "signed already")
    answer = tokexport(*given, "--force")
    assert answer.code == 0, answer
    assert "--trusted-certificate" in answer.said
    with load(signed, certificates=[keys.root]):
        pass
    assert tokexport("verify", signed, "--trusted-certificate", keys.root).code == 0
    with pytest.raises(SignatureError, match="does not come from one that is trusted"):
        load(signed, certificates=[others.root])
    with pytest.raises(SignatureError, match="does not hold"):
        load(signed, public_key=keys.public)
    asked = ("--signature", signed / "model.sig", "--certificate_chain", keys.root)
    done = model_signing("verify", "certificate", signed, *asked)
    assert done.returncode == 0, done.stderr
    given = ("sign", signed, "--force", "--key", keys.private, "--certificate", others.certificate)
    refusal(tokexport(*given), 2, tmp_path, "cannot be signed", "does not match")
    with load(signed, certificates=[keys.root]):  # the signature that was there is still there
        pass


def certificate_of(key: Path, place: Path, days: tuple[int, int], *, signs: bool = True) -> Path:
    """Writes a certificate of a key by itself, valid from and up to some days from now."""
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
    first, last = (
        datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=one) for one in days
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(loaded.public_key())
        .serial_number(9)
        .not_valid_before(first)
        .not_valid_after(last)
    )
    if signs:
        usage = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CODE_SIGNING])
        made = made.add_extension(usage, critical=False)
    place.write_bytes(made.sign(loaded, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return place


def test_a_certificate_that_is_not_valid_or_not_for_signing(
    ort_bundle: Path, tmp_path: Path, keys: Keys
) -> None:
    shutil.copytree(ort_bundle, bundle := tmp_path / "bundle")
    place = tmp_path / "certificate.pem"
    given = ("sign", bundle, "--key", keys.private, "--certificate", place)
    for days in ((-30, -1), (1, 30)):
        certificate_of(keys.private, place, days)
        refusal(tokexport(*given), 2, bundle, "is valid from", "and not today")
    certificate_of(keys.private, place, (-1, 1), signs=False)
    refusal(tokexport(*given), 2, bundle, "is not for signing", "keyUsage=digitalSignature")
    assert not (bundle / "model.sig").exists()
    certificate_of(keys.private, place, (-1, 1))
    assert tokexport(*given).code == 0
    with load(bundle, certificates=[place]):
        pass


def test_a_key_on_a_curve_that_is_not_known(
    ort_bundle: Path, tmp_path: Path, keys: Keys, signed: Path
) -> None:
    shutil.copytree(ort_bundle, bundle := tmp_path / "bundle")
    path = tmp_path / "key.pem"
    for source in (keys.private, keys.public):
        first, *middle, last = source.read_text().splitlines()
        content = base64.b64decode("".join(middle))
        assert P256 in content
        other = base64.b64encode(content.replace(P256, P256[:-1] + b"\x7f")).decode()
        path.write_text(f"{first}\n{other}\n{last}\n")
        if source == keys.private:
            answer = tokexport("sign", bundle, "--key", path)
            refusal(answer, 2, bundle, "cannot be signed by this key", "P-256, P-384 or P-521")
        else:
            with pytest.raises(SignatureError, match="holds no public key on P-256"):
                load(signed, public_key=path)


def test_keys_of_another_kind(ort_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(ort_bundle, bundle := tmp_path / "bundle")
    made = (rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate())
    for key in (*made, ec.generate_private_key(ec.SECP256K1())):
        path = tmp_path / "key.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        answer = tokexport("sign", bundle, "--key", path)
        message = refusal(answer, 2, bundle, "cannot be signed by this key", "P-256, P-384 or")
        assert "attribute" not in message
        path.write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        (bundle / "model.sig").write_text("{}")
        answer = tokexport("verify", bundle, "--public-key", path)
        message = refusal(answer, 5, bundle, "holds no public key on P-256, P-384 or P-521")
        assert "Do not use this bundle" not in message
        (bundle / "model.sig").unlink()


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_other_curves(ort_bundle: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    (tmp_path / "keys").mkdir()
    found = make_keys(tmp_path / "keys", curve)
    shutil.copytree(ort_bundle, bundle := tmp_path / "bundle")
    sign_bundle(bundle, found.private)
    with load(bundle, public_key=found.public):
        pass


def test_a_folder_that_is_reached_by_a_link(ort_bundle: Path, tmp_path: Path, keys: Keys) -> None:
    shutil.copytree(ort_bundle, tmp_path / "v2")
    (current := tmp_path / "current").symlink_to("v2")
    assert tokexport("sign", current, "--key", keys.private).code == 0
    for bundle in (current, tmp_path / "v2"):
        with load(bundle, public_key=keys.public):
            pass
    (tmp_path / "v2" / "linked").symlink_to(tmp_path)
    refused = tokexport("sign", current, "--key", keys.private, "--force")
    refusal(refused, 2, tmp_path / "v2", "files in it that compile did not write", "linked")


def test_what_cannot_be_signed(ort_bundle: Path, tmp_path: Path, keys: Keys) -> None:
    shutil.copytree(ort_bundle, bundle := tmp_path / "bundle")
    for key in (keys.public, bundle / "model.onnx", tmp_path / "nowhere.pem"):
        answer = tokexport("sign", bundle, "--key", key)
        refusal(answer, 2, bundle, "cannot be signed by this key", "PEM key without a password")
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    refusal(tokexport("sign", bundle, "--key", locked), 2, bundle, "cannot be signed by this key")
    (bundle / "notes.txt").write_text("mine")
    refusal(tokexport("sign", bundle, "--key", keys.private), 2, bundle, "notes.txt")
    (bundle / "notes.txt").unlink()
    (bundle / "report.json").write_text("{}")
    refusal(tokexport("sign", bundle, "--key", keys.private), 5, bundle, "'report.json'")
    assert not (bundle / "model.sig").exists()


def test_a_signature_travels_in_packages(signed: Path, tmp_path: Path, keys: Keys) -> None:
    package_bundle(signed, "tar", tmp_path / "b.tar")
    subprocess.run(
        ["tar", "-xf", "b.tar", "-C", tmp_path, "--one-top-level=out"], cwd=tmp_path, check=True
    )
    with load(tmp_path / "out" / "signed", public_key=keys.public):
        pass
    with pytest.raises(BundleError):
        load(tmp_path / "out", public_key=keys.public)


def test_threads_that_verify_leave_the_process_as_it_was(signed: Path, keys: Keys) -> None:
    before = sys.stdout, [*warnings.filters], logging.getLogger("model_signing").level
    signer = Signer(public_key=keys.public)
    threads = [Thread(target=require_signature, args=(signed, signer)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = sys.stdout, [*warnings.filters], logging.getLogger("model_signing").level
    assert after == before


def test_force_may_replace_a_signed_bundle(signed: Path) -> None:
    with BundleWriter(signed, force=True):
        pass
    (signed / "other.sig").write_text("mine")
    with (
        pytest.raises(OutputExistsError, match="holds other things"),
        BundleWriter(signed, force=True),
    ):
        pass
