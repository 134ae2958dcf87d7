"""What a port asks a stranger for: ``python scan.py ADDRESS PORT …`` prints an answer for each.

A stranger has no key, password, token or certificate, and speaks TLS, HTTP, the queue's protocol
and gRPC. SSL_CERT_FILE names whom it trusts. Answers that begin with OPEN say what was not refused.
"""

import contextlib
import http.client
import json
import os
import socket
import ssl
import sys
from pathlib import Path

import grpc

SECONDS = 5.0
METRICS = "nothing: metrics to read"
PATHS = ("/v1/jobs", "/farm", "/metrics")  # of the gateway, of the store's bucket, of metrics
# What Ray's processes serve: one method of each service, as its protocol files name them.
METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.RayletDriver/ClusterInfo",
    "/ray.rpc.RuntimeEnvService/GetOrCreateRuntimeEnv",
)


def ask(address: str, port: int) -> str:
    """One line."""
    try:
        tls, first = greet(address, port)
    except ssl.SSLError as error:
        return "a certificate" if "CERTIFICATE" in str(error) else f"OPEN, {error.reason}"
    except OSError as error:
        return f"nothing: it does not answer ({error})"
    with_tls = " over TLS" if tls else ""
    if first.startswith(b"-NOAUTH"):
        return f"a password{with_tls}"
    if first.startswith(b"HTTP/"):
        return ask_http(address, port, tls) + with_tls
    return ask_grpc(address, port, tls) + with_tls


def greet(address: str, port: int) -> tuple[bool, bytes]:
    """Whether it speaks TLS, and its answer to what HTTP and the queue's protocol understand.

    Raises:
        ssl.SSLError: it wants a certificate.
    """
    with socket.create_connection((address, port), SECONDS) as line:
        try:
            secure = _context().wrap_socket(line, server_hostname=address)
        except ssl.SSLError as error:
            if "CERTIFICATE" in str(error):
                raise
        except OSError:  # it has hung up
            pass
        else:
            with secure:
                return True, _greet(secure)
    with socket.create_connection((address, port), SECONDS) as line:
        return False, _greet(line)


def _greet(line: socket.socket) -> bytes:
    line.sendall(b"PING / HTTP/1.0\r\n\r\n")
    try:
        return line.recv(64)
    except ssl.SSLError:
        raise
    except OSError:
        return b""


def ask_http(address: str, port: int, tls: bool) -> str:
    statuses, body = {}, b""
    for path in PATHS:
        line = (
            http.client.HTTPSConnection(address, port, timeout=SECONDS, context=_context())
            if tls
            else http.client.HTTPConnection(address, port, timeout=SECONDS)
        )
        with contextlib.closing(line):
            line.request("GET", path)
            answer = line.getresponse()
            statuses[path], body = answer.status, answer.read()
    if refused := {status for status in statuses.values() if status in (401, 403)}:
        return f"a key ({refused.pop()})"
    if statuses == dict.fromkeys(PATHS, 200) and body.startswith(b"# HELP"):
        return METRICS
    return f"OPEN {json.dumps(statuses)}"


def ask_grpc(address: str, port: int, tls: bool) -> str:
    """A stranger may know whom to trust; that is no secret."""
    target = f"{address}:{port}"
    trusted = Path(os.environ["SSL_CERT_FILE"]).read_bytes()
    found = set()
    with (
        grpc.secure_channel(target, grpc.ssl_channel_credentials(trusted))
        if tls
        else grpc.insecure_channel(target)
    ) as channel:
        for method in METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=SECONDS)
                found.add("OK")
            except grpc.RpcError as error:
                found.add(error.code().name)
    if found == {"UNAVAILABLE"} and tls:
        return "a certificate"
    if "UNAUTHENTICATED" in found and "OK" not in found:
        return "a token"
    return f"OPEN {sorted(found)}"


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1", "h2"])  # gRPC hangs up without
    return context


def main() -> None:
    for port in sys.argv[2:]:
        print(json.dumps([int(port), ask(sys.argv[1], int(port))]), flush=True)


if __name__ == "__main__":
    main()
