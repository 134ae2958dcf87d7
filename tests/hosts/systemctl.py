"""``systemctl enable --now UNIT …`` on a host without systemd: a unit gets the user, the files and
the environment that it asks for."""

import pwd
import re
import shlex
import subprocess
import sys
from pathlib import Path

UNITS = Path("/etc/systemd/system")
LOGS = Path("/var/log")
# Private /tmp, everything read-only but the state's folder, no way to more rights.
SANDBOX = """
set -e
mount -t tmpfs -o mode=1777 tmp /tmp
mount --bind /var/lib/farm /var/lib/farm
mount -o remount,bind,ro /
cd /
exec setpriv --reuid=farm --regid=farm --clear-groups --no-new-privs "$@"
"""
KEEP = 'while :; do "$@"; sleep 1; done'


def settings(text: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", text, flags=re.MULTILINE)


def start(unit: str) -> None:
    name, _, instance = unit.partition("@")
    text = (UNITS / f"{name}{'@' if instance else ''}.service").read_text(encoding="utf-8")
    (user,) = settings(text, "User")
    for told in ("ProtectSystem=strict", "PrivateTmp=true", "NoNewPrivileges=true"):
        assert told in text, f"{unit} is not run as it asks for: {told}"
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "USER": user}
    environment["HOME"] = pwd.getpwnam(user).pw_dir
    pairs = settings(text, "Environment")
    for file in settings(text, "EnvironmentFile"):
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        pairs += [line for line in lines if line and not line.startswith("#")]
    environment.update(pair.split("=", 1) for pair in pairs)
    for folder in shlex.split(settings(text, "StateDirectory")[0]):
        subprocess.run(["install", "-d", "-o", user, "-g", user, f"/var/lib/{folder}"], check=True)
    (command,) = settings(text, "ExecStart")
    filled = re.sub(r"\$\{(\w+)\}", lambda found: environment[found[1]], command)
    words = shlex.split(filled.replace("%i", instance))
    with (LOGS / f"{unit}.log").open("ab") as log:
        subprocess.Popen(
            ["sh", "-c", KEEP, "keep", "unshare", "-m", "sh", "-c", SANDBOX, unit, *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


if __name__ == "__main__":
    assert sys.argv[1:3] == ["enable", "--now"], sys.argv
    for one in sys.argv[3:]:
        start(one)
