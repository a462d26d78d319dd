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
        # uv downloads and unpacks many packages at a time, pip one after the other.
        install_with_uv "$1" ||
            "$python" -m pip install --quiet --disable-pip-version-check --no-compile -e ".$1"
        # Otherwise each of the first processes would compile torch.
        PYTHONDONTWRITEBYTECODE="" "$python" -m imgcls_search.executors.warm
        echo "$stamp" > "$installed"
    fi
}

# The same with uv, which does not read what pip is set to.
install_with_uv() {
    "$python" -m pip install --quiet --disable-pip-version-check uv || return 1
    (
        set_uv_as_pip
        "$python" -m uv pip install --quiet --python "$("$python" -c 'import sys; print(sys.executable)')" -e ".$1"
    ) || {
        echo "uv could not install it; trying pip" >&2
        return 1
    }
}

# Makes uv look for packages where pip does, for the rest of this shell.
set_uv_as_pip() {
    set_as_pip UV_CONSTRAINT constraint
    set_as_pip UV_FIND_LINKS find-links
    set_as_pip UV_DEFAULT_INDEX index-url
    set_as_pip UV_INDEX extra-index-url
    # As pip: the newest of all.
    export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"
}

# Exports a variable of uv with what pip is set to, by the environment or a file of pip's, unless it has a value.
set_as_pip() {
    local word kept=""
    [ -z "${!1:-}" ] || return 0
    # The environment comes first in pip's list; several values of one setting stand in several lines of it.
    for word in $("$python" -m pip config list 2> /dev/null |
        sed -nE "s/^(:env:|global|install)\.$2='(.*)'\$/\2/p" | head -n 1 | sed 's/\\n/ /g'); do
        # pip passes over what is not there.
        case "$word" in file://*) [ -e "${word#file://}" ] || continue ;; esac
        kept="${kept:+$kept }$word"
    done
    [ -z "$kept" ] || export "$1=$kept"
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
