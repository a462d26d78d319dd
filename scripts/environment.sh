# Sourced by the other scripts: sets `python` to an interpreter of an environment that has, or will have, torch.
# An active environment with torch is used as it is; otherwise .venv is made, or used again.

if [ -n "${VIRTUAL_ENV:-}" ] && "$VIRTUAL_ENV/bin/python" -c 'import torch, torchvision' 2>/dev/null; then
    python="$VIRTUAL_ENV/bin/python"
    echo "using the active environment, which has torch: $VIRTUAL_ENV"
else
    if [ ! -x .venv/bin/python ]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
            echo "error: Python 3.10 or newer is needed, got $("${PYTHON:-python3}" --version); set PYTHON" >&2
            exit 2
        }
        echo "making .venv"
        "${PYTHON:-python3}" -m venv .venv
    fi
    python=".venv/bin/python"
fi

# Installs the project with the given extras unless the same pyproject.toml was installed here before.
install() {
    local stamp installed
    stamp="$1 $(cksum < pyproject.toml) $PWD"
    installed="$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/imgcls-search.installed"
    if [ "$(cat "$installed" 2>/dev/null)" != "$stamp" ]; then
        echo "installing the project$1 (torch and torchvision take a few minutes the first time)"
        "$python" -m pip install --quiet --disable-pip-version-check --no-compile -e ".$1"
        # pip would compile thousands of modules on one core; a file that is for another Python is no failure.
        "$python" -m compileall -q -j 0 "$(dirname "$installed")" > /dev/null 2>&1 || true
        echo "$stamp" > "$installed"
    fi
}

# Installs the browser that the tests of pages look with; without it they are skipped and say so.
install_browser() {
    if command -v chromium > /dev/null; then
        return
    fi
    local root=""
    [ "$(id -u)" = 0 ] || root="sudo"
    if command -v apt-get > /dev/null && { [ -z "$root" ] || command -v sudo > /dev/null; }; then
        echo "installing Debian's chromium for the tests of pages"
        if $root apt-get update -qq && $root apt-get install -y -qq --no-install-recommends chromium > /dev/null; then
            return
        fi
    fi
    echo "warning: chromium could not be installed here; the tests of pages will be skipped" >&2
}
